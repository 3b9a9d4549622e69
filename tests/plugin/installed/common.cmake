# What the tests of the installed tree share: environment, run(), build(), suits().
# -DSOURCE= source tree, -DLIBDIR= such as lib, -DFOLDER= of these tests, -DFLAGS= compiler flags, -DGENERATOR=
foreach(name PATH ADD SELECT DISABLE)
  unset(ENV{DUET_PLUGIN_${name}})
endforeach()
unset(ENV{DESTDIR})
set(prefix ${FOLDER}/moved)
set(plugins ${prefix}/${LIBDIR}/duet/plugins-1)
set(model ${prefix}/share/duet/models/stories-7m/stories-7m.pth)
set(lax sh -c "umask 002 && exec \"$@\"" sh)  # as on systems where every user has a group; plugins must be taken all the same

function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output ECHO_OUTPUT_VARIABLE ECHO_ERROR_VARIABLE)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "failed (${result}): ${ARGN}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

# build(FOLDER [-D...]): copies a project and builds it against the installed tree, with warnings as errors
function(build source)
  get_filename_component(name ${source} NAME)
  file(COPY ${source} DESTINATION ${FOLDER})
  set(type Release)
  if(NOT FLAGS STREQUAL "")
    set(type None)  # those of a sanitizer alone, which optimisation makes compile twice as long
  endif()
  run(${CMAKE_COMMAND} -G ${GENERATOR} -S ${FOLDER}/${name} -B ${FOLDER}/${name}-build -DCMAKE_BUILD_TYPE=${type} "-DCMAKE_C_FLAGS=${FLAGS} -Wall -Wextra -Werror"
    "-DCMAKE_CXX_FLAGS=${FLAGS} -Wall -Wextra -Werror" -DCMAKE_PREFIX_PATH=${prefix} -DCMAKE_INSTALL_PREFIX=${prefix} -DCMAKE_INSTALL_LIBDIR=${LIBDIR} ${ARGN})
  run(${lax} ${CMAKE_COMMAND} --build ${FOLDER}/${name}-build)
endfunction()

# plugin(NAME [-D...]): builds and installs plugins/NAME: it exports one symbol, links no Duet, and runs a whole model
function(plugin name)
  build(${SOURCE}/plugins/${name} ${ARGN})
  run(${lax} ${CMAKE_COMMAND} --install ${FOLDER}/${name}-build)
  run(nm -D --defined-only ${plugins}/libduet_${name}.so)
  string(REGEX MATCHALL "[^ \n]+\n" symbols "${output}")
  if(NOT symbols STREQUAL "duetp_query\n")
    message(FATAL_ERROR "a plugin exports duetp_query and nothing else, not: ${symbols}")
  endif()
  run(readelf -d ${plugins}/libduet_${name}.so)
  if(output MATCHES "libduet\\.")
    message(FATAL_ERROR "a plugin does not link libduet")
  endif()
  run(${FOLDER}/check-build/check ${model} ${name})
  set(output "${output}" PARENT_SCOPE)
endfunction()
