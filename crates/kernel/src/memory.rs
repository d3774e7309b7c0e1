//! The memory of this process.

use std::io;
use std::os::unix::fs::MetadataExt;

/// Takes the pages of the program's code out of the process: what runs comes back from the page cache by itself, a
/// few microseconds for sixteen pages, and what was needed to start does not. Also of huge code only what is used
/// counts as resident then. Answers how many bytes of code there are.
///
/// # Errors
/// When `/proc/self` cannot be read, or the kernel refuses (madvise(2)).
pub fn release_code() -> io::Result<usize> {
    let inode = std::fs::metadata("/proc/self/exe")?.ino();
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let mut all = 0;
    for (start, length) in maps.lines().filter_map(|line| code(line, inode)) {
        // SAFETY: the range is a mapping of this process, made from a file, private and never writable: its
        // pages are those of the file and come back with the same content when they are touched, as those do
        // that were never touched before.
        #[allow(unsafe_code)]
        let refused =
            unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
        if refused != 0 {
            return Err(io::Error::last_os_error());
        }
        all += length;
    }
    Ok(all)
}

/// Where a mapping begins and how long it is, if it is code of a file (proc_pid_maps(5)).
fn code(line: &str, inode: u64) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (from, to) = words.next()?.split_once('-')?;
    let (rights, of) = (words.next()?, words.nth(2)?);
    if rights != "r-xp" || of.parse() != Ok(inode) {
        return None;
    }
    let [from, to] = [from, to].map(|text| usize::from_str_radix(text, 16).ok());
    Some((from?, to?.checked_sub(from?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_found() {
        let line = "55d3c1a00000-55d3c1a02000 r-xp 00002000 fe:01 4711     /usr/bin/causeway";
        assert_eq!(code(line, 4711), Some((0x55d3_c1a0_0000, 0x2000)));
        assert_eq!(code(line, 4712), None);
        assert_eq!(code(&line.replace("r-xp", "r--p"), 4711), None);
        assert_eq!(code(&line.replace("r-xp", "rwxp"), 4711), None);
        assert_eq!(code("", 0), None);
    }

    /// Bytes of the program's code that are resident.
    fn resident() -> usize {
        let inode = std::fs::metadata("/proc/self/exe").unwrap().ino();
        let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut ours = false;
        let mut sum = 0;
        for line in text.lines() {
            if line.split_ascii_whitespace().next().is_some_and(|word| word.contains('-')) {
                ours = code(line, inode).is_some();
            } else if let (true, Some(rest)) = (ours, line.strip_prefix("Rss:")) {
                let kib: usize = rest.trim().trim_end_matches(" kB").parse().unwrap();
                sum += kib * 1024;
            }
        }
        sum
    }

    #[test]
    fn what_is_not_used_any_more_is_not_resident() {
        // All pages are there once.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let inode = std::fs::metadata("/proc/self/exe").unwrap().ino();
        for (start, length) in maps.lines().filter_map(|line| code(line, inode)) {
            for page in (0..length).step_by(4096) {
                // SAFETY: it is a readable mapping of this process.
                #[allow(unsafe_code)]
                unsafe {
                    std::ptr::read_volatile((start + page) as *const u8);
                }
            }
        }
        let before = resident();
        assert!(release_code().unwrap() >= before);
        let after = resident();
        println!("{before} bytes resident, then {after}");
        // What is touched comes back with what is around it, which is much of a small program.
        assert!(after > 0 && after < before, "{after} of {before}");
    }
}
