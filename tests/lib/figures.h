// Figures that tests and benches leave for build/persist/report.json: lines "NAME VALUE" in $MPIG_FIGURES (a file that several may append
// to); nothing happens without it. tools/build/persist-report adds up what `figures_add` says and keeps all of `figures_put`.
#ifndef MPIG_TESTS_LIB_FIGURES_H
#define MPIG_TESTS_LIB_FIGURES_H

void figures_add(const char *name, double value);
void figures_put(const char *name, double value);
// What this test is doing, said on stderr at the program's end if it has not been taken back ("") by then: if it failed.
__attribute__((format(printf, 1, 2))) void figures_doing(const char *format, ...);

#endif
