//! The binary `causeway-cni`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::var_os("CNI_COMMAND").is_none() {
        let words: Vec<String> = std::env::args().skip(1).collect();
        match causeway_plugins::by_hand(&words) {
            Some(Ok(said)) => {
                print!("{said}");
                return ExitCode::SUCCESS;
            }
            Some(Err(why)) => {
                eprintln!("{why}");
                return ExitCode::FAILURE;
            }
            None => {}
        }
    }
    // A pod's start waits for it, and each turn of another's in between makes it wait. Without the right to it works too.
    let _ = causeway_kernel::sched::before_others();
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
