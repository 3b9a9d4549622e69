# Run by cpack between installation and packing. Brings the shared libraries that not every Debian has into the tarball, with
# their licences; the RPATH of our programs, library and plugins leads there. Debian packages name theirs as dependencies.
cmake_minimum_required(VERSION 3.25)
if(CPACK_GENERATOR STREQUAL "DEB")
  find_program(SHLIBDEPS dpkg-shlibdeps)
  if(NOT SHLIBDEPS)  # cpack would go on, and name no dependencies
    message(FATAL_ERROR "Debian packages need dpkg-shlibdeps: apt-get install dpkg-dev; the tarball alone: cpack -G TGZ")
  endif()
endif()
if(NOT CPACK_GENERATOR STREQUAL "TGZ")
  return()
endif()
set(root ${CPACK_TEMPORARY_INSTALL_DIRECTORY})
set(lib ${root}/${CPACK_DUET_LIBDIR})

file(GLOB programs ${root}/bin/*)
file(GLOB plugins ${lib}/duet/plugins-1/*.so)
# Not brought: what comes with the C and the C++ compiler's runtime and belongs to every system, and drivers.
file(GET_RUNTIME_DEPENDENCIES EXECUTABLES ${programs} LIBRARIES ${lib}/libduet.so MODULES ${plugins} RESOLVED_DEPENDENCIES_VAR needed
  PRE_EXCLUDE_REGEXES "^ld-linux" "^lib(c|m|dl|rt|pthread|stdc\\+\\+|gcc_s)\\.so" "^libcuda\\.so" "^libduet\\.so")

foreach(library ${needed})
  file(INSTALL ${library} DESTINATION ${lib} TYPE SHARED_LIBRARY FOLLOW_SYMLINK_CHAIN)
  file(REAL_PATH ${library} file)
  execute_process(COMMAND dpkg-query --search ${file} OUTPUT_VARIABLE owner ERROR_QUIET RESULT_VARIABLE failed)
  string(REGEX REPLACE ":.*" "" package "${owner}")
  if(failed OR NOT EXISTS /usr/share/doc/${package}/copyright)
    message(WARNING "The tarball holds ${file}, whose licence was not found: no Debian package brought it")
  else()
    configure_file(/usr/share/doc/${package}/copyright ${root}/${CPACK_DUET_DOCDIR}/licences/${package} COPYONLY)
  endif()
endforeach()
