# -DCONFORM= duet-conform, -DARGUMENTS= its arguments, -DCODE= the exit code that they must give
execute_process(COMMAND ${CONFORM} ${ARGUMENTS} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE error)
message("${output}${error}")
if(NOT result EQUAL CODE)
  message(FATAL_ERROR "the exit code is ${result}, not ${CODE}")
endif()
if(CODE EQUAL 2 AND NOT error MATCHES "duet-conform --help")
  message(FATAL_ERROR "wrong usage must lead to the help")
endif()
