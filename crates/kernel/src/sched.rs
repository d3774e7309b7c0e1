//! Who runs first where there are fewer processors than work.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::process::{getpriority_process, setpriority_process};

/// Highest priority of an ordinary process (`MAX_NICE` of the kernel's `linux/sched/prio.h`).
const FIRST: i32 = -20;

/// Has the calling thread run before others of ordinary priority, and what it starts as well: for what is over in
/// a few milliseconds, and somebody waits for it.
///
/// # Errors
/// Without the right to (`CAP_SYS_NICE`, setpriority(2)); nothing is changed then.
pub fn before_others() -> io::Result<()> {
    let former = getpriority_process(None)?;
    setpriority_process(None, FIRST)?;
    FORMER.store(former, Ordering::Relaxed);
    Ok(())
}

/// What [`before_others`] has changed.
static FORMER: AtomicI32 = AtomicI32::new(FIRST);

/// Has the calling thread run as it did before [`before_others`]: for when it waits for others, who may need its processor.
///
/// # Errors
/// When the kernel refuses; nothing is changed then.
pub fn as_before() -> io::Result<()> {
    match FORMER.load(Ordering::Relaxed) {
        FIRST => Ok(()),
        former => Ok(setpriority_process(None, former)?),
    }
}

/// Has the calling thread take no processor away from who has it when it wakes up (`SCHED_BATCH`, sched(7)): it begins
/// when that one sleeps, or its share is used up. How much it gets is what any other gets.
///
/// # Errors
/// When the kernel refuses (sched_setscheduler(2)); nothing is changed then.
pub fn behind_who_runs() -> io::Result<()> {
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters outlive the call, which reads them alone.
    #[allow(unsafe_code)]
    let refused = unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const none) };
    if refused != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread's nice value and policy (proc_pid_stat(5)).
    fn here() -> (i32, i32) {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        // The name, which may have spaces, is in brackets.
        let words: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
        // Of all, the 19th and the 41st word; these begin with the third.
        (words[16].parse().unwrap(), words[38].parse().unwrap())
    }

    #[test]
    fn threads_say_who_runs_first() {
        let normal = std::thread::spawn(here).join().unwrap();
        let batch = std::thread::spawn(|| {
            behind_who_runs().unwrap();
            here()
        });
        assert_eq!(batch.join().unwrap(), (normal.0, libc::SCHED_BATCH));
        let first = std::thread::spawn(|| {
            before_others()?;
            let first = here();
            as_before().map(|()| (first, here()))
        });
        match first.join().unwrap() {
            Ok((first, behind)) => assert_eq!((first, behind), ((FIRST, normal.1), normal)),
            Err(why) => assert_eq!(why.kind(), io::ErrorKind::PermissionDenied),
        }
        assert_eq!(std::thread::spawn(here).join().unwrap(), normal, "of one thread alone");
    }
}
