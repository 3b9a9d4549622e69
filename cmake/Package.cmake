# Packages, by cpack in the build tree: a tarball that runs from any folder, and Debian packages, one a component.
#
# component     Debian package      holds
# library       libduet0            libduet.so.0, the World vocabulary, licences
# dev           libduet-dev         headers, CMake and pkg-config files, duet-conform, the template of a plugin, the Python package, Rust and Go sources
# command       duet                the command, the bundled model
# layers        duet-layers         the interposing layers
# backend_cpu   duet-backend-cpu    the plugin; likewise each other backend of the build
set(CPACK_PACKAGE_NAME duet)
set(CPACK_PACKAGE_VENDOR "the Duet authors")
set(CPACK_PACKAGE_CONTACT "the Duet authors")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY ${PROJECT_DESCRIPTION})
set(CPACK_PACKAGE_DIRECTORY ${PROJECT_BINARY_DIR}/packages)
set(CPACK_PACKAGE_FILE_NAME duet-${PROJECT_VERSION}-${CMAKE_SYSTEM_NAME}-${CMAKE_SYSTEM_PROCESSOR})
set(CPACK_GENERATOR TGZ DEB)
set(CPACK_STRIP_FILES ON)
set(CPACK_VERBATIM_VARIABLES ON)
set(CPACK_COMPONENTS_ALL library dev layers)
# Duet takes no plugin from a folder that others could change, and umask must not make one.
set(CPACK_INSTALL_DEFAULT_DIRECTORY_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)

set(CPACK_PRE_BUILD_SCRIPTS ${PROJECT_SOURCE_DIR}/cmake/Bundle.cmake)
set(CPACK_DUET_LIBDIR ${CMAKE_INSTALL_LIBDIR})
set(CPACK_DUET_DOCDIR ${CMAKE_INSTALL_DOCDIR})

set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS_PRIVATE_DIRS ${PROJECT_BINARY_DIR}/lib)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(same "(= ${PROJECT_VERSION})")

set(CPACK_DEBIAN_LIBRARY_PACKAGE_NAME libduet0)
set(CPACK_DEBIAN_LIBRARY_PACKAGE_SECTION libs)
set(CPACK_DEBIAN_LIBRARY_PACKAGE_CONTROL_EXTRA ${PROJECT_BINARY_DIR}/triggers)
file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/triggers CONTENT "activate-noawait ldconfig\n")
set(CPACK_COMPONENT_LIBRARY_DESCRIPTION "The shared library, with a plain and slow backend built in, and the World vocabulary.")

set(CPACK_DEBIAN_DEV_PACKAGE_NAME libduet-dev)
set(CPACK_DEBIAN_DEV_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_DEV_PACKAGE_DEPENDS "libduet0 ${same}")
set(CPACK_COMPONENT_DEV_DESCRIPTION "Headers of the library and of its plugins, files for CMake and pkg-config, the Python package, the sources of the Rust and Go bindings, the template of a plugin, and duet-conform, which checks plugins.")

set(CPACK_DEBIAN_LAYERS_PACKAGE_NAME duet-layers)
set(CPACK_DEBIAN_LAYERS_PACKAGE_DEPENDS libduet0)
set(CPACK_COMPONENT_LAYERS_DESCRIPTION "Interposing layers, plugins of the library: validate, trace and canary.")

if(DUET_APPS)
  list(APPEND CPACK_COMPONENTS_ALL command)
  set(CPACK_DEBIAN_COMMAND_PACKAGE_NAME duet)
  set(CPACK_DEBIAN_COMMAND_PACKAGE_DEPENDS "libduet0 ${same}")
  set(CPACK_DEBIAN_COMMAND_PACKAGE_RECOMMENDS duet-backend-cpu)
  set(CPACK_COMPONENT_COMMAND_DESCRIPTION "The duet command: generates and scores text, converts models. With a small model of stories.")
endif()
foreach(backend cpu cuda)
  if(TARGET duet_${backend})
    string(TOUPPER ${backend} name)
    list(APPEND CPACK_COMPONENTS_ALL backend_${backend})
    set(CPACK_DEBIAN_BACKEND_${name}_PACKAGE_NAME duet-backend-${backend})
    set(CPACK_DEBIAN_BACKEND_${name}_PACKAGE_DEPENDS libduet0)
    set(CPACK_COMPONENT_BACKEND_${name}_DESCRIPTION "The ${name} backend, a plugin of the library.")
  endif()
endforeach()
include(CPack)
