# -DCONFORM= duet-conform, -DPLUGIN= a plugin, -DENTRIES= lines of a list that goes to -DFILE=, -DARGUMENTS= more of them, -DRESULT= the exit
# code, -DEXPECTED= a regular expression
string(REPLACE ";" "\n" ENTRIES "${ENTRIES}")
file(WRITE ${FILE} "${ENTRIES}\n")
execute_process(COMMAND ${CONFORM} --plugin ${PLUGIN} --quick --expect ${FILE} ${ARGUMENTS} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
message("${output}")
if(NOT result EQUAL RESULT)
  message(FATAL_ERROR "the exit code is ${result}, not ${RESULT}")
endif()
if(NOT output MATCHES "${EXPECTED}")
  message(FATAL_ERROR "nothing says: ${EXPECTED}")
endif()
