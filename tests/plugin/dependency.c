/* The library that the fake plugin `missing_dependency` needs and that the tests leave behind. */
__attribute__((visibility("default"))) int fake_dependency(void);
int fake_dependency(void) { return 0; }
