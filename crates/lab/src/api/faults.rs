//! Faults on demand: what an API server under stress, or behind a bad network, does to its clients.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// What is wrong, as it is set and read (`/causeway.lab/faults`). Zero means: nothing. All durations
/// count from the moment of setting; reading tells what is left of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FaultSettings {
    /// Milliseconds that every answer is held back.
    pub latency_ms: u64,
    /// Seconds during which requests are accepted and not answered, and watches are silent. They
    /// go on when the time is over, as those of a server that was stopped and continued.
    pub stall_seconds: f64,
    /// Seconds during which watches are silent, while requests are answered. They go on when the time is over.
    pub watch_stall_seconds: f64,
    /// Seconds during which connections are closed at once; existing ones are closed, too. Nobody
    /// reaches this setting over the network in that time, so it has to end by itself.
    pub refuse_seconds: f64,
    /// Seconds during which watches, and lists of a given version or page, get `410 Gone`.
    pub gone_seconds: f64,
    /// Seconds during which every request gets `429 Too Many Requests`.
    pub too_many_requests_seconds: f64,
    /// The `Retry-After` of those answers, in seconds.
    pub retry_after_seconds: u32,
    /// Ends all running watches, once.
    pub cut_watches: bool,
}

#[derive(Debug, Default)]
struct Active {
    latency: Duration,
    stall: Option<Instant>,
    watch_stall: Option<Instant>,
    refuse: Option<Instant>,
    gone: Option<Instant>,
    throttle: Option<Instant>,
    retry_after: u32,
}

/// Counts the settings that concern what already runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    settings: u64,
    cuts: u64,
    refusals: u64,
    gone: u64,
}

/// Why a running watch has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupt {
    Cut,
    Gone,
}

/// The faults of a running API; shared, changed at run time.
#[derive(Debug)]
pub struct Faults {
    active: Mutex<Active>,
    counts: watch::Sender<Counts>,
}

impl Default for Faults {
    fn default() -> Self {
        Faults { active: Mutex::default(), counts: watch::Sender::new(Counts::default()) }
    }
}

/// A duration that is no number or too long counts as a year.
fn until(seconds: f64) -> Option<Instant> {
    let year = 31_536_000.0;
    (seconds > 0.0).then(|| Instant::now() + Duration::from_secs_f64(seconds.min(year)))
}

fn left(until: Option<Instant>) -> f64 {
    until.map_or(0.0, |at| at.saturating_duration_since(Instant::now()).as_secs_f64())
}

fn running(until: Option<Instant>) -> Option<Instant> {
    until.filter(|at| *at > Instant::now())
}

impl Faults {
    fn read<T>(&self, read: impl FnOnce(&Active) -> T) -> T {
        read(&self.active.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces all faults.
    pub fn set(&self, settings: &FaultSettings) {
        let active = Active {
            latency: Duration::from_millis(settings.latency_ms),
            stall: until(settings.stall_seconds),
            watch_stall: until(settings.watch_stall_seconds),
            refuse: until(settings.refuse_seconds),
            gone: until(settings.gone_seconds),
            throttle: until(settings.too_many_requests_seconds),
            retry_after: settings.retry_after_seconds.max(1),
        };
        let (refuse, gone) = (active.refuse.is_some(), active.gone.is_some());
        *self.active.lock().unwrap_or_else(PoisonError::into_inner) = active;
        self.counts.send_modify(|counts| {
            counts.settings += 1;
            counts.cuts += u64::from(settings.cut_watches);
            counts.refusals += u64::from(refuse);
            counts.gone += u64::from(gone);
        });
    }

    /// The faults in force, with the time that is left of them.
    pub fn get(&self) -> FaultSettings {
        self.read(|active| FaultSettings {
            latency_ms: u64::try_from(active.latency.as_millis()).unwrap_or(u64::MAX),
            stall_seconds: left(active.stall),
            watch_stall_seconds: left(active.watch_stall),
            refuse_seconds: left(active.refuse),
            gone_seconds: left(active.gone),
            too_many_requests_seconds: left(active.throttle),
            retry_after_seconds: active.retry_after,
            cut_watches: false,
        })
    }

    pub(crate) fn refusing(&self) -> bool {
        self.read(|active| running(active.refuse).is_some())
    }

    pub(crate) fn gone(&self) -> bool {
        self.read(|active| running(active.gone).is_some())
    }

    /// The seconds after which to come back, while requests are turned away.
    pub(crate) fn throttled(&self) -> Option<u32> {
        self.read(|active| running(active.throttle).map(|_| active.retry_after))
    }

    /// Waits as long as answers are held back.
    pub(crate) async fn delay(&self) {
        let latency = self.read(|active| active.latency);
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        self.stalled().await;
    }

    /// Waits until a stall is over.
    pub(crate) async fn stalled(&self) {
        self.over(|active| running(active.stall)).await;
    }

    /// Waits until watches are not silent any more.
    pub(crate) async fn watches_stalled(&self) {
        self.over(|active| running(active.stall).max(running(active.watch_stall))).await;
    }

    async fn over(&self, end: impl Fn(&Active) -> Option<Instant>) {
        let mut changes = self.counts.subscribe();
        while let Some(end) = self.read(&end) {
            tokio::select! {
                () = tokio::time::sleep_until(end.into()) => {}
                _ = changes.changed() => {}
            }
        }
    }

    /// Something that tells when what runs has to end.
    pub(crate) fn interrupts(&self) -> Interrupts {
        let counts = self.counts.subscribe();
        let start = *counts.borrow();
        Interrupts { counts, start }
    }
}

/// Tells when what runs has to end.
#[derive(Clone, Debug)]
pub(crate) struct Interrupts {
    counts: watch::Receiver<Counts>,
    start: Counts,
}

impl Interrupts {
    /// Makes a watch end at once: it begins while its version counts as gone.
    pub(crate) fn interrupt(&mut self) {
        self.start.gone = self.start.gone.wrapping_sub(1);
    }

    /// Waits until watches have to end.
    pub(crate) async fn watch(&mut self) -> Interrupt {
        let start = self.start;
        match self.counts.wait_for(|now| now.cuts != start.cuts || now.gone != start.gone).await {
            Ok(now) if now.cuts == start.cuts => Interrupt::Gone,
            _ => Interrupt::Cut,
        }
    }

    /// Waits until connections have to end.
    pub(crate) async fn connection(&mut self) {
        let start = self.start;
        let _ = self.counts.wait_for(|now| now.refusals != start.refusals).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_count_down_and_can_be_taken_back() {
        let faults = Faults::default();
        let set = FaultSettings {
            gone_seconds: 60.0,
            latency_ms: 5,
            retry_after_seconds: 7,
            ..Default::default()
        };
        faults.set(&set);
        let read = faults.get();
        assert!(faults.gone() && !faults.refusing() && faults.throttled().is_none());
        assert!(read.gone_seconds > 59.0 && read.gone_seconds <= 60.0 && read.latency_ms == 5);
        faults.set(&FaultSettings::default());
        assert!(!faults.gone());
        faults
            .set(&FaultSettings { too_many_requests_seconds: f64::INFINITY, ..Default::default() });
        assert_eq!(faults.throttled(), Some(1));
    }

    #[test]
    fn unknown_settings_are_refused() {
        assert!(serde_json::from_str::<FaultSettings>(r#"{"stall":1}"#).is_err());
        assert_eq!(
            serde_json::from_str::<FaultSettings>(r#"{"stallSeconds":1}"#).unwrap().stall_seconds,
            1.0
        );
    }

    #[tokio::test]
    async fn a_stall_ends_early_when_it_is_taken_back() {
        let faults = std::sync::Arc::new(Faults::default());
        faults.set(&FaultSettings { stall_seconds: 600.0, ..Default::default() });
        let waiting = tokio::spawn({
            let faults = faults.clone();
            async move { faults.stalled().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        faults.set(&FaultSettings::default());
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn running_watches_learn_why_they_end() {
        let faults = Faults::default();
        let (mut cut, mut gone) = (faults.interrupts(), faults.interrupts());
        faults.set(&FaultSettings { cut_watches: true, ..Default::default() });
        assert_eq!(cut.watch().await, Interrupt::Cut);
        faults.set(&FaultSettings { gone_seconds: 1.0, ..Default::default() });
        assert_eq!(faults.interrupts().start, *gone.counts.borrow());
        assert_eq!(gone.watch().await, Interrupt::Cut);
    }
}
