//! What processes a program starts, and how long each lives: told by the kernel.
//!
//! Tracepoints (`Documentation/trace/events.rst`), in an instance of tracefs of this program's own. Nothing
//! is put between the program and what it starts, as a wrapper would be, and nobody has to run while
//! it is measured: the kernel writes into its own buffer, which is read afterwards.
//!
//! The end of a process is when the kernel sends SIGCHLD to its parent, after it has given back memory
//! and files; the tracepoint `sched_process_exit` comes before that. The proc connector tells the same
//! times without the programs' names, which are gone from `/proc` before anybody can read them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount};

/// Where tracefs is mounted, in a mount namespace of this program's own.
const AT: &str = "/run/tracing";
/// KiB for each processor: some ten thousand events.
const BUFFER: &str = "4096";
const SIGCHLD: &str = "sig==17";

/// A process that has called exec and has ended. Times are the kernel's, in microseconds of the
/// monotonic clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    /// Name of the program's file, without its directory.
    pub(crate) name: String,
    forked: u64,
    executed: u64,
    ended: u64,
    /// So long it waited for its standard input: until its parent had written all of it.
    waited: u64,
}

impl Process {
    /// Milliseconds from exec to its end.
    pub(crate) fn run(&self) -> f64 {
        (self.ended - self.executed) as f64 / 1e3
    }

    /// The same without the time for which it waited for its parent to write its standard input.
    pub(crate) fn own(&self) -> f64 {
        self.run() - self.waited as f64 / 1e3
    }

    /// Milliseconds from fork to its end: with the making of the process and the exec itself.
    pub(crate) fn whole(&self) -> f64 {
        (self.ended - self.forked) as f64 / 1e3
    }
}

/// Traces until it is dropped.
#[derive(Debug)]
pub(crate) struct Trace {
    dir: PathBuf,
}

impl Trace {
    /// Begins, in a world of this program's own ([`causeway_lab::isolate`]). `programs`: those whose waits
    /// for their standard input are to be told, by the names of their files.
    ///
    /// # Errors
    /// When the kernel has no tracefs (CONFIG_FTRACE, CONFIG_FTRACE_SYSCALLS) or no such events.
    pub(crate) fn start(programs: &[&str]) -> Result<Self> {
        fs::create_dir_all(AT).context(AT)?;
        mount("tracefs", AT, "tracefs", MountFlags::empty(), None)
            .context("mount tracefs: this needs a kernel with CONFIG_FTRACE")?;
        let dir = Path::new(AT).join(format!("instances/causeway-bench-{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        let trace = Self { dir };
        // What other processes read would fill the buffer. The end of a call does not tell the file.
        let reads: Vec<String> = programs.iter().map(|p| format!("comm == \"{p}\"")).collect();
        let reads = reads.join(" || ");
        for (file, text) in [
            // The clocks of processors differ with the one that is set at first.
            ("trace_clock", "mono"),
            ("buffer_size_kb", BUFFER),
            ("events/signal/signal_generate/filter", SIGCHLD),
            ("events/signal/signal_generate/enable", "1"),
            ("events/sched/sched_process_fork/enable", "1"),
            ("events/sched/sched_process_exec/enable", "1"),
            ("events/syscalls/sys_enter_read/filter", "fd == 0"),
            ("events/syscalls/sys_enter_read/enable", "1"),
            ("events/syscalls/sys_exit_read/filter", &reads),
            ("events/syscalls/sys_exit_read/enable", "1"),
        ] {
            trace.write(file, text)?;
        }
        Ok(trace)
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.dir.join(file);
        fs::write(&path, text).with_context(|| format!("write {text:?} into {}", path.display()))
    }

    /// Forgets all that has happened.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn clear(&self) -> Result<()> {
        self.write("trace", "\n")
    }

    /// What a process started, directly, since [`Trace::clear`], and what of it has ended.
    ///
    /// # Errors
    /// When events were lost.
    pub(crate) fn children(&self, of: u32) -> Result<Vec<Process>> {
        let text = fs::read_to_string(self.dir.join("trace")).context("read the trace")?;
        ensure!(!text.contains("LOST"), "events of processes were lost: the machine is too busy");
        Ok(children(&text, &threads(of)?))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.dir) {
            eprintln!("{}: {error}: remove this directory of tracefs", self.dir.display());
        }
    }
}

/// Any of them may start a process.
fn threads(process: u32) -> Result<BTreeSet<u32>> {
    let dir = format!("/proc/{process}/task");
    let mut all = BTreeSet::new();
    for entry in fs::read_dir(&dir).context(dir)? {
        all.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(all)
}

/// The beginning and the end of a read, as the kernel writes them.
const READS: &str = "sys_read(";
const HAS_READ: &str = "sys_read -> ";

/// One line of the trace: who did something, when in microseconds, and what.
struct Event<'a> {
    who: u32,
    time: u64,
    name: &'a str,
    /// `key=value` with spaces between.
    said: &'a str,
}

impl<'a> Event<'a> {
    /// `COMMAND-PID [CPU] FLAGS SECONDS.MICROSECONDS: NAME: WORDS`; commands may have spaces.
    fn read(line: &'a str) -> Option<Self> {
        const NAMES: [&str; 5] =
            ["sched_process_fork: ", "sched_process_exec: ", "signal_generate: ", READS, HAS_READ];
        let found = NAMES.iter().find_map(|name| line.find(&format!(": {name}")).zip(Some(*name)));
        let (at, name) = found?;
        let mut words = line[..at].split_whitespace().rev();
        let (seconds, micros) = words.next()?.split_once('.')?;
        let time = seconds.parse::<u64>().ok()? * 1_000_000 + micros.parse::<u64>().ok()?;
        let who = words.nth(2)?.rsplit('-').next()?.parse().ok()?;
        Some(Self { who, time, name, said: &line[at + 2 + name.len()..] })
    }

    fn word(&self, key: &str) -> Option<&'a str> {
        let word = |word: &'a str| word.strip_prefix(key)?.strip_prefix('=');
        self.said.split(' ').find_map(word)
    }

    fn number(&self, key: &str) -> Option<u32> {
        self.word(key)?.parse().ok()
    }
}

/// Those whose parent is one of the threads, in the order of their ends.
fn children(text: &str, parents: &BTreeSet<u32>) -> Vec<Process> {
    let mut born: BTreeMap<u32, (u32, u64)> = BTreeMap::new();
    let mut running: BTreeMap<u32, Process> = BTreeMap::new();
    let mut reading: BTreeMap<u32, u64> = BTreeMap::new();
    let mut ended = Vec::new();
    for event in text.lines().filter_map(Event::read) {
        match event.name {
            "sched_process_fork: " => {
                let Some(child) = event.number("child_pid") else { continue };
                born.insert(child, (event.who, event.time));
            }
            "sched_process_exec: " => {
                let child = born.get(&event.who).filter(|(parent, _)| parents.contains(parent));
                let (Some((_, forked)), Some(file)) = (child, event.word("filename")) else {
                    continue;
                };
                let name = file.rsplit('/').next().unwrap_or(file).to_owned();
                let (executed, ended) = (event.time, event.time);
                let process = Process { name, forked: *forked, executed, ended, waited: 0 };
                running.insert(event.who, process);
            }
            READS => drop(reading.insert(event.who, event.time)),
            HAS_READ => {
                let process = process_of(event.who, &running, &born);
                if let Some(since) = reading.remove(&event.who)
                    && let Some(process) = running.get_mut(&process)
                {
                    process.waited += event.time - since;
                }
            }
            // To whom, tells that it is the end of a child of these.
            _ if event.number("pid").is_some_and(|to| parents.contains(&to)) => {
                if let Some(process) = running.remove(&process_of(event.who, &running, &born)) {
                    ended.push(Process { ended: event.time, ..process });
                }
            }
            _ => {}
        }
    }
    ended
}

/// Any thread of a process may do something: those that are no process have one for their parent.
fn process_of(
    mut who: u32,
    running: &BTreeMap<u32, Process>,
    born: &BTreeMap<u32, (u32, u64)>,
) -> u32 {
    while !running.contains_key(&who)
        && let Some((parent, _)) = born.get(&who)
    {
        who = *parent;
    }
    who
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From kernel 6.18, shortened: 50 starts a plugin of two threads, whose second ends last, and that
    /// another program.
    const TEXT: &str = "\
# tracer: nop
# TASK-PID CPU# ||||| TIMESTAMP FUNCTION
 containerd-51 [000] .....  2737.672303: sched_process_fork: comm=containerd pid=51 child_comm=x child_pid=60
   my tool--60 [001] .....  2737.673892: sched_process_exec: filename=/opt/cni/bin/bridge pid=60 old_pid=60
     bridge-60 [001] .....  2737.673900: sys_read(fd: 0, buf: 7ffd0000, count: 2000)
     bridge-60 [001] .....  2737.673990: sys_read -> 0x41
     bridge-60 [001] .....  2737.673995: sys_read -> 0x200
     bridge-60 [001] .....  2737.674000: sched_process_fork: comm=bridge pid=60 child_comm=x child_pid=61
     bridge-61 [001] .....  2737.675000: sched_process_fork: comm=bridge pid=61 child_comm=x child_pid=62
 host-local-62 [001] .....  2737.675500: sched_process_exec: filename=/bin/host-local pid=62 old_pid=62
 host-local-62 [000] dN.2.  2737.676000: signal_generate: sig=17 errno=0 code=1 comm=bridge pid=61 grp=1
     bridge-61 [000] dN.2.  2738.000303: signal_generate: sig=17 errno=0 code=1 comm=containerd pid=51 grp=1
";

    #[test]
    fn a_process_lives_until_its_parent_is_told() {
        let found = children(TEXT, &BTreeSet::from([50, 51]));
        let wanted = Process {
            name: "bridge".into(),
            forked: 2_737_672_303,
            executed: 2_737_673_892,
            ended: 2_738_000_303,
            waited: 90,
        };
        assert_eq!(found, [wanted]);
        assert_eq!((found[0].run(), found[0].whole()), (326.411, 328.0));
        assert!((found[0].own() - 326.321).abs() < 1e-6);
        assert!(children(TEXT, &BTreeSet::from([7])).is_empty());
    }

    /// The kernel's own words about `sleep`.
    #[test]
    fn the_kernel_tells_how_long_a_program_ran() {
        std::thread::spawn(|| {
            causeway_lab::isolate().expect("these tests need root");
            let trace = Trace::start(&["cat"]).unwrap();
            trace.clear().unwrap();
            let start = std::time::Instant::now();
            let sleep = std::process::Command::new("sleep").arg("0.2").status().unwrap();
            let outer = start.elapsed().as_secs_f64() * 1e3;
            assert!(sleep.success());
            let all = trace.children(std::process::id()).unwrap();
            let found: Vec<_> = all.iter().filter(|p| p.name == "sleep").collect();
            let [found] = found[..] else { panic!("{all:?}") };
            assert!(found.run() >= 200.0 && found.run() <= found.whole(), "{found:?}");
            assert!(found.whole() <= outer, "{found:?} in {outer} ms");
            // What waits for its input waits for us.
            trace.clear().unwrap();
            let mut cat = std::process::Command::new("cat")
                .stdin(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            std::thread::sleep(std::time::Duration::from_millis(200));
            drop(cat.stdin.take());
            cat.wait().unwrap();
            let all = trace.children(std::process::id()).unwrap();
            let found = all.iter().find(|p| p.name == "cat").expect("it ran");
            assert!(found.run() >= 190.0 && found.own() < 150.0, "{found:?}");
        })
        .join()
        .unwrap();
    }
}
