//! Words in, exit code out.

fn main() -> std::process::ExitCode {
    roomkeeper::cli::run()
}
