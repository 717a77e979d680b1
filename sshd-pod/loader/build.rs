//! Links the shipped loader with nothing but itself.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_FREESTANDING").is_some() {
        // No C start-up code and no C library: `src/start.rs` has the entry point. Not relocatable, because
        // relocating a program to where it was loaded is the C library's work too.
        for flag in ["-nostartfiles", "-nostdlib", "-static", "-no-pie"] {
            println!("cargo::rustc-link-arg-bins={flag}");
        }
    }
}
