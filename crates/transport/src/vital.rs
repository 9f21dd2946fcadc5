//! Tasks without which a node is none. A runtime holds a panic back: the task is gone, and nobody notices
//! that a peer is never dialed again or that the clock stands still. So here a panic ends the process, and
//! the node's groups are led elsewhere.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::task::JoinHandle;

/// Runs `task`, which `name` tells people of, on the present runtime. A panic in it ends the process.
pub fn spawn<F>(name: &'static str, task: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(Vital { name, task: Box::pin(task) })
}

struct Vital<F> {
    name: &'static str,
    task: Pin<Box<F>>,
}

impl<F: Future> Future for Vital<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let polled = catch_unwind(AssertUnwindSafe(|| self.task.as_mut().poll(context)));
        polled.unwrap_or_else(|_| {
            // Without a subscriber the panic hook's message on standard error still tells what happened.
            tracing::error!(task = self.name, "a vital task panicked: the process ends");
            std::process::abort()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::process::Command;

    use super::*;

    const CHILD: &str = "QUORATE_VITAL_TEST_CHILD";

    #[test]
    fn a_panic_in_a_vital_task_ends_the_process() {
        let name = "vital::tests::a_panic_in_a_vital_task_ends_the_process";
        if env::var_os(CHILD).is_none() {
            let mut child = Command::new(env::current_exe().expect("a test knows its own path"));
            child.args(["--exact", name, "--nocapture"]).env(CHILD, "1");
            let output = child.output().expect("it starts");
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), None, "ended by a signal: {errors}");
            assert!(errors.contains("clumsy"), "{errors}");
            return;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        // Without the guard the runtime would hold the panic back and the child would succeed.
        let joined = runtime.block_on(async {
            spawn("test", async {
                tokio::task::yield_now().await;
                panic!("clumsy");
            })
            .await
        });
        drop(joined);
    }
}
