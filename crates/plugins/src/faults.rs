//! A plugin that dies before one of its changes of the disk, or whose disk refuses one, inside a
//! test's own thread.

use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// What happens at the change of a number, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process is killed: nothing of it runs any more, and its locks are given back.
    Kill(u32),
    /// The disk refuses this one change.
    Refuse(u32),
}

struct Killed;

thread_local! {
    static FAULT: Cell<Option<Fault>> = const { Cell::new(None) };
    static CHANGES: Cell<u32> = const { Cell::new(0) };
}

/// In place of `files::about_to_change`.
pub(crate) fn about_to_change() -> io::Result<()> {
    let number = CHANGES.replace(CHANGES.get() + 1);
    match FAULT.get() {
        Some(Fault::Kill(at)) if at == number => resume_unwind(Box::new(Killed)),
        Some(Fault::Refuse(at)) if at == number => Err(io::ErrorKind::StorageFull.into()),
        _ => Ok(()),
    }
}

/// Runs one process. `None`: it was killed. Unwinding stands for the kill, since nothing on the
/// way cleans up but open files, which the kernel closes for the dead as well.
pub(crate) fn process<T>(fault: Option<Fault>, run: impl FnOnce() -> T) -> Option<T> {
    CHANGES.set(0);
    FAULT.set(fault);
    let end = catch_unwind(AssertUnwindSafe(run));
    FAULT.set(None);
    match end {
        Ok(value) => Some(value),
        Err(why) if why.is::<Killed>() => None,
        Err(why) => resume_unwind(why),
    }
}
