# The README's C example is the program that was compiled.
file(READ ${PROGRAM} program)
file(READ ${README} readme)
string(FIND "${readme}" "```c\n${program}```" at)
if(at EQUAL -1)
  message(FATAL_ERROR "${README} does not show ${PROGRAM} as it is")
endif()
