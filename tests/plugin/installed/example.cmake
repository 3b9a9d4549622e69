# A plugin of plugins/ that computes one stage, in each dtype and mode, and runs whole golden models.
# -DNAME= the plugin, -DSTAGE= its stage, -DTEST_MODEL= the program of tests/model, -DOPTIONS= for its configuration
include(${CMAKE_CURRENT_LIST_DIR}/common.cmake)
plugin(${NAME} ${OPTIONS})
set(only "")
if(NOT FLAGS STREQUAL "")
  set(only --stage ${STAGE})  # networks are the reference's, but for this stage, and take long under sanitizers
endif()
run(${prefix}/bin/duet-conform --plugin ${plugins}/libduet_${NAME}.so --quick ${only})
foreach(dtype f32 bf16 f16)
  foreach(mode parallel recurrent)
    if(NOT output MATCHES "pass +${STAGE} +${dtype} +${mode}")
      message(FATAL_ERROR "duet-conform does not say that ${STAGE} is right in ${dtype}, ${mode}")
    endif()
  endforeach()
endforeach()
if(NOT FLAGS STREQUAL "")
  return()  # as do whole golden models
endif()
run(${CMAKE_COMMAND} -E env DUET_PLUGIN_ADD=${plugins}/${NAME}.duet.json DUET_TEST_BACKENDS=${NAME} ${TEST_MODEL} "golden tiny*")
