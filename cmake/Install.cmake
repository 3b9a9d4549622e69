# What goes where. The build tree has the shape of the install tree, and both can be moved: bin/, <libdir>/libduet.so with
# duet/plugins-1/ beside it, and share/duet/ for the data (models/CMakeLists.txt). The components are those of
# the packages (Package.cmake).
include(CMakePackageConfigHelpers)

set(package ${CMAKE_INSTALL_LIBDIR}/cmake/Duet)
install(TARGETS duet duet_sdk EXPORT DuetTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT library NAMELINK_COMPONENT dev)
install(EXPORT DuetTargets NAMESPACE Duet:: DESTINATION ${package} COMPONENT dev)
install(FILES api/duet.h api/duet_types.h api/duet_plugin.h api/duet_interpose.h sdk/include/duet_host_memory.h sdk/include/duet_stage.h sdk/include/duet_quantised.h
  sdk/include/duet_interpose.hpp DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT dev)
configure_package_config_file(cmake/DuetConfig.cmake.in ${PROJECT_BINARY_DIR}/DuetConfig.cmake INSTALL_DESTINATION ${package})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/DuetConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/DuetConfig.cmake ${PROJECT_BINARY_DIR}/DuetConfigVersion.cmake sdk/cmake/DuetPlugin.cmake DESTINATION ${package} COMPONENT dev)

file(RELATIVE_PATH up /prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig /prefix)
string(REGEX REPLACE "/$" "" up ${up})
configure_file(cmake/duet.pc.in ${PROJECT_BINARY_DIR}/duet.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/duet.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT dev)

install(FILES LICENSE NOTICE DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT library)
