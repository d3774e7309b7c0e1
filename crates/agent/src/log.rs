//! What is logged, and how much, which may change while the agent runs.

use std::sync::OnceLock;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// Puts another filter in place of the one that the process started with. The log is the process's own, as
/// standard error is.
static CHANGE: OnceLock<Box<dyn Fn(EnvFilter) + Send + Sync>> = OnceLock::new();

/// Begins to log to standard error, with as much as RUST_LOG, the option or the configuration says. What the
/// configuration says later counts where neither of the others is given.
///
/// # Errors
/// When one of them is no filter.
pub(crate) fn start(option: Option<&str>, configured: Option<&str>) -> anyhow::Result<()> {
    let variable = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let fixed = variable.as_deref().or(option);
    let filter = filter(fixed.or(configured))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_filter_reloading();
    let handle = builder.reload_handle();
    // A caller that set up a log of its own keeps it.
    if builder.try_init().is_ok() && fixed.is_none() {
        let change = move |filter| {
            // The subscriber lives as long as the process.
            let _ = handle.reload(filter);
        };
        let _ = CHANGE.set(Box::new(change));
    }
    Ok(())
}

/// Logs as much as a changed configuration says.
pub(crate) fn change(configured: Option<&str>) {
    // The configuration was checked as a whole.
    if let (Some(change), Ok(filter)) = (CHANGE.get(), filter(configured)) {
        change(filter);
    }
}

fn filter(text: Option<&str>) -> anyhow::Result<EnvFilter> {
    let text = text.unwrap_or("info");
    EnvFilter::try_new(text).context("log level: expected a word such as info, or TARGET=LEVEL,…")
}
