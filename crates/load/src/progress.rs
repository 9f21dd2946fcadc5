//! The line that moves while a run goes on.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::args::Load;

/// How often the figures on the line are renewed: a rate over less jumps too much to be read.
const RENEWAL: Duration = Duration::from_millis(500);

/// A live line on standard error; nothing at all when that is no terminal.
pub(crate) struct Progress {
    bar: ProgressBar,
    total: Option<u64>,
    began: Instant,
    shown: Instant,
    answered: u64,
}

impl Progress {
    /// The line for a run called `name`.
    pub(crate) fn new(name: &str, load: &Load) -> Self {
        let length = load.total.unwrap_or((load.warmup + load.duration).as_millis() as u64);
        let bar = ProgressBar::new(length);
        if let Ok(style) = ProgressStyle::with_template("{prefix} {wide_bar} {percent:>3} %  {msg}")
        {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        let now = Instant::now();
        Self { bar, total: load.total, began: now, shown: now, answered: 0 }
    }

    /// Renews the line, if it is time, from what was counted since the start.
    pub(crate) fn show(&mut self, answered: u64, failed: u64) {
        let since = self.shown.elapsed();
        if self.bar.is_hidden() || since < RENEWAL {
            return;
        }
        let rate = answered.saturating_sub(self.answered) as f64 / since.as_secs_f64();
        self.bar.set_position(match self.total {
            Some(total) => (answered + failed).min(total),
            None => self.began.elapsed().as_millis() as u64,
        });
        self.bar.set_message(format!("{rate:.0} ops/s, {failed} errors"));
        self.shown = Instant::now();
        self.answered = answered;
    }

    /// Takes the line away.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
