//! One child process.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

/// Bytes at the end of a log that a failed test shows.
const LOG_TAIL_BYTES: usize = 4_000;

/// How long a thread may be inside the kernel, in a sync for instance.
const FREEZE_BOUND: Duration = Duration::from_secs(30);

/// A running program. It is killed when this is dropped; when that happens because a test fails, the end of
/// its log is printed.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command`; what it prints is added to the file `log`.
    ///
    /// # Panics
    /// When the program or the log cannot be opened.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Self {
        let open = || File::options().create(true).append(true).open(log);
        let (out, error) = (open().expect("a log can be made"), open().expect("and opened again"));
        let child = command.stdin(Stdio::null()).stdout(out).stderr(error).spawn();
        let child = child.unwrap_or_else(|error| panic!("{name}: {command:?}: {error}"));
        Self { name: name.to_owned(), child, log: log.to_owned(), ended: None }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, or none while it runs.
    ///
    /// # Panics
    /// When the kernel does not know the child.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child of ours can be waited for");
        }
        self.ended
    }

    /// Ends it at once, without a chance to put anything in order: `kill -9`. Returns when it is gone.
    ///
    /// # Panics
    /// When the kernel does not know the child.
    pub fn kill(&mut self) {
        if self.ended().is_none() {
            // It may end by itself in between; then there is nothing to kill.
            let _ = self.child.kill();
            self.ended = Some(self.child.wait().expect("a child of ours can be waited for"));
        }
    }

    /// Stops it for `time`, as a machine does that is suspended or starved: `SIGSTOP`, then `SIGCONT`.
    /// The time is the fault, not a wait for something.
    pub fn pause(&self, time: Duration) {
        self.signal(Signal::STOP);
        thread::sleep(time);
        self.signal(Signal::CONT);
    }

    /// Stops it, until it is killed or [thawed](Self::thaw): when this returns, none of its threads does anything any
    /// more.
    ///
    /// # Panics
    /// When a thread does not come back from the kernel.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.pid());
        wait::until("all threads are stopped", FREEZE_BOUND, || {
            let tasks = fs::read_dir(&tasks).map_err(|error| error.to_string())?;
            for task in tasks.flatten() {
                let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                // The name in parentheses may hold anything; the state follows the last one.
                let state = stat.rsplit(')').next().and_then(|rest| rest.trim().chars().next());
                if !matches!(state, None | Some('T')) {
                    return Err(stat);
                }
            }
            Ok(())
        });
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    /// Asks it to end, and waits.
    ///
    /// # Panics
    /// When it does not end within `bound`.
    pub fn terminate(&mut self, bound: Duration) -> ExitStatus {
        if self.ended().is_none() {
            self.signal(Signal::TERM);
        }
        self.wait(bound)
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// When it does not within `bound`.
    pub fn wait(&mut self, bound: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        wait::until(&what, bound, || self.ended().ok_or_else(|| "it still runs".to_owned()))
    }

    /// Everything that it printed so far, this start and earlier ones with the same log.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let ended = self.ended();
        self.kill();
        if thread::panicking() {
            let log = self.log();
            let from = log.len().saturating_sub(LOG_TAIL_BYTES);
            let from = (from..=log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or(0);
            let how = ended.map_or_else(|| "still running".to_owned(), |status| status.to_string());
            // Nothing is left to do when standard error is closed.
            let _ = writeln!(std::io::stderr(), "--- {} ({how}):\n{}", self.name, &log[from..]);
        }
    }
}

fn send(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    // It may end by itself in between; then there is nobody to tell.
    let _ = kill_process(pid.expect("a child's id is positive"), signal);
}

/// What `work` with the child of id `pid` comes to.
///
/// # Panics
/// With `what`, when that does not come within `bound`. The child is killed then: nobody waits for it any more.
pub fn within<T: Send + 'static>(
    what: &str,
    bound: Duration,
    pid: u32,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (tell, told) = mpsc::channel();
    // Nobody listens any more when it is late.
    thread::spawn(move || drop(tell.send(work())));
    told.recv_timeout(bound).unwrap_or_else(|_| {
        send(pid, Signal::KILL);
        panic!("{what}: not within {bound:?}")
    })
}

/// What a child that ends by itself has printed, and how it ended.
///
/// # Panics
/// With `what`, when it does not end within `bound`.
pub fn output(what: &str, bound: Duration, child: Child) -> Output {
    let output = within(what, bound, child.id(), move || child.wait_with_output());
    output.expect("a child of ours can be waited for")
}
