#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| kshuttle_sshd::fuzzing::before_login(input));
