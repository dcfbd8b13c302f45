//! `cargo bench --bench purge`: hands the release binary to `tests/bench/purge.py`, which makes the servers, purges and compares.
//!
//! It needs a Python with `matrix-synapse` and room on a disk:
//!
//! ```text
//! python3 -m venv ~/synapse && ~/synapse/bin/pip install matrix-synapse==1.163.2
//! ROOMKEEPER_BENCH_PYTHON=~/synapse/bin/python ROOMKEEPER_BENCH_DIR=/var/tmp/roomkeeper-bench \
//!     cargo bench --bench purge -- --sizes 10k,100k
//! ```

use std::{
    env,
    process::{Command, ExitCode},
};

fn main() -> ExitCode {
    let (Some(python), Some(_)) = (
        env::var_os("ROOMKEEPER_BENCH_PYTHON"),
        env::var_os("ROOMKEEPER_BENCH_DIR"),
    ) else {
        eprintln!(
            "set ROOMKEEPER_BENCH_PYTHON (a Python with matrix-synapse) and ROOMKEEPER_BENCH_DIR (some 10 GB of disk)"
        );
        return ExitCode::from(2);
    };
    let binary =
        env::var_os("ROOMKEEPER").unwrap_or_else(|| env!("CARGO_BIN_EXE_roomkeeper").into());
    let status = Command::new(&python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/purge.py"))
        // cargo itself adds `--bench`
        .args(env::args_os().skip(1).filter(|arg| arg != "--bench"))
        .env("ROOMKEEPER", binary)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .status();
    match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{}: {error}", python.to_string_lossy());
            ExitCode::from(2)
        }
    }
}
