//! Words in, exit code out.

fn main() -> std::process::ExitCode {
    roomkeeper::run_command_line()
}
