# Installs the build tree, and builds the tests of the Go binding and its example against what is installed. gofmt and go vet must have
# nothing to say.
# -DBUILD= build tree, -DSOURCE= of the binding, -DFOLDER= for what is built, -DLIBDIR= such as lib, -DGO= the program
function(run)
  execute_process(COMMAND ${ARGN} WORKING_DIRECTORY ${SOURCE} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "failed (${result}): ${ARGN}\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

unset(ENV{DESTDIR})
file(REMOVE_RECURSE ${FOLDER}/installed)
run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${FOLDER}/installed)
set(ENV{PKG_CONFIG_PATH} ${FOLDER}/installed/${LIBDIR}/pkgconfig)
run(${GO} env GOROOT)
string(STRIP ${output} root)
run(${root}/bin/gofmt -l .)
if(output)
  message(FATAL_ERROR "not as gofmt writes them:\n${output}")
endif()
run(${GO} vet ./...)
run(${GO} test -c -o ${FOLDER}/tests)
run(${GO} build -o ${FOLDER}/chat ./examples/chat)
