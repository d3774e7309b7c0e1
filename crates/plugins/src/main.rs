//! The binary `causeway-cni`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    let program = std::env::args_os().next().unwrap_or_default();
    let code = causeway_plugins::run(
        &program.to_string_lossy(),
        |name| std::env::var(name).ok(),
        std::io::stdin().lock(),
        std::io::stdout().lock(),
        std::io::stderr().lock(),
    );
    ExitCode::from(code)
}
