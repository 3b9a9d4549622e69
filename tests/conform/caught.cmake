# -DCONFORM= duet-conform, -DPLUGIN= a broken plugin, -DEXPECTED= a regular expression
execute_process(COMMAND ${CONFORM} --plugin ${PLUGIN} --quick --stage wkv RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
message("${output}")
if(NOT result EQUAL 1)
  message(FATAL_ERROR "the exit code is ${result}, not 1")
endif()
if(NOT output MATCHES "${EXPECTED}")
  message(FATAL_ERROR "nothing says: ${EXPECTED}")
endif()
