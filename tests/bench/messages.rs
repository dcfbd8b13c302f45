//! `cargo bench --bench messages`: hands the release binary to `tests/bench/messages.py`, which pages a big room with it and
//! with a real Synapse on the same database, in turns.
//!
//! It needs what the purge benchmark needs:
//!
//! ```text
//! ROOMKEEPER_BENCH_PYTHON=~/synapse/bin/python ROOMKEEPER_BENCH_DIR=/var/tmp/roomkeeper-bench \
//!     cargo bench --bench messages -- --size 100k
//! ```

#[path = "driver.rs"]
mod driver;

fn main() -> std::process::ExitCode {
    driver::run("messages.py")
}
