//! Being told to end: what a lab made has to go first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow, bail};
use tokio::signal::unix::{SignalKind, signal};

/// Whether this process was told to end (SIGINT, SIGTERM, SIGHUP), which does not end it by itself any more.
#[derive(Clone, Debug)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens from now on, to the end of the process. Whoever tells it twice will not wait: then it ends at
    /// once, after `last_words`.
    ///
    /// # Errors
    /// When no thread or handler can be had.
    pub fn listen(last_words: String) -> Result<Self> {
        let told = Arc::new(AtomicBool::new(false));
        let (tx, listening) = std::sync::mpsc::channel();
        let flag = told.clone();
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let result = match runtime {
                Ok(runtime) => runtime.block_on(hear(&flag, &tx, &last_words)),
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                let _ = tx.send(Err(error));
            }
        };
        let thread = std::thread::Builder::new().name("signals".into());
        thread.spawn(run).context("a thread for signals")?;
        listening.recv().map_err(|_| anyhow!("signals cannot be heard"))?.context("signals")?;
        Ok(Self(told))
    }

    /// Whether it was told.
    pub fn is_told(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Fails once it was told.
    ///
    /// # Errors
    /// Then.
    pub fn check(&self) -> Result<()> {
        if self.is_told() {
            bail!("interrupted");
        }
        Ok(())
    }
}

async fn hear(
    told: &AtomicBool,
    ready: &std::sync::mpsc::Sender<std::io::Result<()>>,
    last_words: &str,
) -> std::io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let _ = ready.send(Ok(()));
    loop {
        let code = tokio::select! {
            _ = interrupt.recv() => 130,
            _ = terminate.recv() => 143,
            _ = hangup.recv() => 129,
        };
        if told.swap(true, Ordering::SeqCst) {
            eprintln!("{last_words}");
            std::process::exit(code);
        }
    }
}
