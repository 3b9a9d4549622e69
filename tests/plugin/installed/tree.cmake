# Installs the build tree, moves the result, and builds the program `check` against it. -DBUILD= build tree, and those of common.cmake
include(${CMAKE_CURRENT_LIST_DIR}/common.cmake)
file(REMOVE_RECURSE ${FOLDER})
file(MAKE_DIRECTORY ${FOLDER})
run(${lax} ${CMAKE_COMMAND} --install ${BUILD} --prefix ${FOLDER}/first)
file(RENAME ${FOLDER}/first ${FOLDER}/moved)  # a relocatable tree does not mind
build(${CMAKE_CURRENT_LIST_DIR}/check)

find_program(PKG_CONFIG pkg-config)
if(PKG_CONFIG)
  set(ENV{PKG_CONFIG_PATH} ${prefix}/${LIBDIR}/pkgconfig)
  run(${PKG_CONFIG} --variable=includedir duet)
  string(STRIP "${output}" include)
  if(NOT EXISTS ${include}/duet.h)
    message(FATAL_ERROR "duet.pc: no duet.h in ${include}")
  endif()
endif()
