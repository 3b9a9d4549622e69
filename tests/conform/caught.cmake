# -DCONFORM= duet-conform, -DPLUGIN= a broken plugin, -DSTAGE= what is checked, -DRESULT= the exit code or signal, -DEXPECTED= a regular expression
execute_process(COMMAND ${CONFORM} --plugin ${PLUGIN} --quick --stage ${STAGE} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
message("${output}")
if(NOT result STREQUAL RESULT)
  message(FATAL_ERROR "the result is ${result}, not ${RESULT}")
endif()
if(NOT output MATCHES "${EXPECTED}")
  message(FATAL_ERROR "nothing says: ${EXPECTED}")
endif()
