//! `cargo bench --bench purge`: hands the release binary to `tests/bench/purge.py`, which makes the servers, purges and compares.
//!
//! It needs a Python with `matrix-synapse` and room on a disk:
//!
//! ```text
//! python3 -m venv ~/synapse && ~/synapse/bin/pip install matrix-synapse==1.163.2
//! ROOMKEEPER_BENCH_PYTHON=~/synapse/bin/python ROOMKEEPER_BENCH_DIR=/var/tmp/roomkeeper-bench \
//!     cargo bench --bench purge -- --sizes 10k,100k
//! ```

#[path = "driver.rs"]
mod driver;

fn main() -> std::process::ExitCode {
    driver::run("purge.py")
}
