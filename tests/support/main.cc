// Catch2 3 brings its own main; for Catch2 2 this is the one slow translation unit.
#if !__has_include(<catch2/catch_all.hpp>)
#define CATCH_CONFIG_MAIN
#include <catch2/catch.hpp>
#endif
