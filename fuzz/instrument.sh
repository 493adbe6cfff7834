#!/bin/sh
# Cargo calls this in place of rustc (RUSTC_WRAPPER): Lithe's own crates are compiled with the counters
# that libFuzzer reads, dependencies as they are. The flags are cargo-fuzz's; none needs a nightly.
case " $* " in
*" --crate-name lithe "* | *" --crate-name lithe_worker "* | *" --crate-name fuzz_"*)
  exec "$@" --cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares
  ;;
esac
exec "$@"
