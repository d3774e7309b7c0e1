//! Control groups for all that one test or benchmark has a runtime start.

/// Control groups below which everything has its own; removed at the end.
#[derive(Debug)]
pub struct Groups(String);

impl Groups {
    /// A name of this process's own; the runtime makes them.
    pub fn new(name: &str) -> Self {
        Self(format!("/causeway-test-{}-{name}", std::process::id()))
    }

    /// The name, as the runtime takes it.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        let line = format!("find /sys/fs/cgroup/*{0} -depth -type d -exec rmdir {{}} +", self.0);
        let _ = std::process::Command::new("sh").args(["-c", &line]).output();
    }
}
