//! What the benchmarks share: the environment they need, and the way to their scripts.

use std::{
    env,
    path::Path,
    process::{Command, ExitCode},
};

/// Runs one of the scripts beside this file with the Python that the environment names.
pub fn run(script: &str) -> ExitCode {
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
        .arg(
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("tests/bench")
                .join(script),
        )
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
