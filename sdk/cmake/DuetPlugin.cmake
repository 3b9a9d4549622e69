# duet_add_plugin(NAME id SOURCES file... [LIBRARIES ...] [COMPONENT name])
# duet_add_plugin(NAME id COMMAND word... OUTPUT file [COMPONENT name])      where another program, such as cargo, makes the library `file`
#
# Builds the plugin `id` ([a-z0-9_], 1 to 31 of them) as the target duet_<id>: libduet_<id>.so with one exported symbol and
# no link to Duet, and its manifest <id>.duet.json beside it, both in duet/plugins-1 of the build tree, and both installed
# to <libdir>/duet/plugins-1, where Duet looks for them when it is installed under the same prefix.
# DUET_PLUGIN_PATH=<that folder> names one of another place. COMPONENT is that of install(), backend_<id> unless given.
include(GNUInstallDirs)

function(duet_add_plugin)
  cmake_parse_arguments(P "" "NAME;OUTPUT;COMPONENT" "SOURCES;LIBRARIES;COMMAND" ${ARGN})
  if(NOT P_NAME MATCHES "^[a-z0-9_]+$" OR NOT (P_SOURCES OR (P_COMMAND AND P_OUTPUT)))
    message(FATAL_ERROR "duet_add_plugin(NAME id SOURCES file...) or (NAME id COMMAND word... OUTPUT file): id is made of a-z, 0-9 and _")
  endif()
  if(NOT P_COMPONENT)
    set(P_COMPONENT backend_${P_NAME})
  endif()
  set(target duet_${P_NAME})
  set(folder duet/plugins-1)  # 1: the major version of the plugin ABI
  if(CMAKE_LIBRARY_OUTPUT_DIRECTORY)
    set(output ${CMAKE_LIBRARY_OUTPUT_DIRECTORY}/${folder})
  else()
    set(output ${CMAKE_CURRENT_BINARY_DIR}/${folder})
  endif()

  set(library ${output}/libduet_${P_NAME}.so)
  # Duet takes no plugin that others could change; a lax umask must not get in the way.
  set(protect COMMAND chmod go-w ${output} ${library} VERBATIM)
  if(P_COMMAND)
    add_custom_target(${target} ALL COMMAND ${P_COMMAND} COMMAND ${CMAKE_COMMAND} -E copy ${P_OUTPUT} ${library} ${protect} USES_TERMINAL)
    file(MAKE_DIRECTORY ${output})
  else()
    add_library(${target} MODULE ${P_SOURCES})
    target_link_libraries(${target} PRIVATE Duet::sdk ${P_LIBRARIES})
    # Hidden visibility alone leaves the type information of the C++ library's templates exported.
    set(exports ${CMAKE_CURRENT_BINARY_DIR}/${target}.map)
    file(CONFIGURE OUTPUT ${exports} CONTENT "{ global: duetp_query; local: *; };\n")
    target_link_options(${target} PRIVATE -Wl,-Bsymbolic -Wl,--exclude-libs,ALL -Wl,--version-script=${exports})
    set_target_properties(${target} PROPERTIES PREFIX lib OUTPUT_NAME duet_${P_NAME} LIBRARY_OUTPUT_DIRECTORY ${output}
      C_VISIBILITY_PRESET hidden CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
    add_custom_command(TARGET ${target} POST_BUILD ${protect})
  endif()

  set(manifest ${output}/${P_NAME}.duet.json)
  file(CONFIGURE OUTPUT ${manifest} NEWLINE_STYLE UNIX CONTENT [[{"format": 1, "id": "@P_NAME@", "library": "libduet_@P_NAME@.so", "abi": "1.1", "arch": "@CMAKE_SYSTEM_PROCESSOR@"}
]] @ONLY)
  file(CHMOD ${manifest} PERMISSIONS OWNER_READ OWNER_WRITE GROUP_READ WORLD_READ)
  install(DIRECTORY DESTINATION ${CMAKE_INSTALL_LIBDIR}/${folder} COMPONENT ${P_COMPONENT}
    DIRECTORY_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
  if(P_COMMAND)
    install(PROGRAMS ${library} DESTINATION ${CMAKE_INSTALL_LIBDIR}/${folder} COMPONENT ${P_COMPONENT})
  else()
    install(TARGETS ${target} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}/${folder} COMPONENT ${P_COMPONENT})
  endif()
  install(FILES ${manifest} DESTINATION ${CMAKE_INSTALL_LIBDIR}/${folder} COMPONENT ${P_COMPONENT})
endfunction()
