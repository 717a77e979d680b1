#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| kshuttle::cluster::port_forward::fuzzing::answer(input));
