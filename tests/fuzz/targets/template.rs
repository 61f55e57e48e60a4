//! libFuzzer on the body in `bodies/template.rs`.
#![no_main]

#[path = "../bodies/template.rs"]
mod template;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| template::run(bytes));
