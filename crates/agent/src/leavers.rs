//! Threads that bring the removal of attachments to its end, so that DEL does not wait for the
//! kernel.
//!
//! They end, with what is in line, when nobody can put anything in any more; what is left when the
//! process ends before that is the next agent's. Each removal waits some twenty milliseconds in the kernel; those of several threads overlap.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use causeway_plugins::{Paths, leave};

/// As many as overlap well; a burst of more waits in line.
const THREADS: usize = 8;

/// Where others put attachments that are leaving.
#[derive(Clone, Debug)]
pub(crate) struct Leavers {
    queue: Sender<String>,
    waiting: Arc<Mutex<BTreeSet<String>>>,
}

impl Leavers {
    /// Starts the threads in the calling thread's network namespace, with what an agent before this
    /// one left.
    ///
    /// # Errors
    /// When no thread can be had.
    pub(crate) fn start(paths: &Paths) -> anyhow::Result<Self> {
        let (queue, jobs) = channel();
        let jobs = Arc::new(Mutex::new(jobs));
        let leavers = Self { queue, waiting: Arc::default() };
        for n in 0..THREADS {
            let (jobs, waiting, paths) =
                (Arc::clone(&jobs), Arc::clone(&leavers.waiting), paths.clone());
            std::thread::Builder::new()
                .name(format!("leave-{n}"))
                .spawn(move || work(&paths, &jobs, &waiting))
                .context("cannot start a thread")?;
        }
        leavers.put_unfinished(paths);
        Ok(leavers)
    }

    /// Puts the record file of an attachment in line, unless it is there already.
    pub(crate) fn put(&self, file: String) {
        if lock(&self.waiting).insert(file.clone()) {
            // The threads live as long as this does.
            let _ = self.queue.send(file);
        }
    }

    /// Puts in line all that are leaving: what failed, or what nobody told.
    pub(crate) fn put_unfinished(&self, paths: &Paths) {
        match leave::unfinished(paths) {
            Ok(files) => files.into_iter().for_each(|file| self.put(file)),
            Err(error) => tracing::warn!("attachments that are leaving: {error}"),
        }
    }
}

fn work(paths: &Paths, jobs: &Mutex<Receiver<String>>, waiting: &Mutex<BTreeSet<String>>) {
    loop {
        let job = lock(jobs).recv();
        let Ok(file) = job else { return };
        // From here on another request for it is a new one.
        lock(waiting).remove(&file);
        if let Err(error) = leave::finish(paths, &file) {
            tracing::warn!("{file}: the attachment cannot be removed: {error}; tried again soon");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
