//! One keep-alive stream: sends what is due, takes the answers, and opens the stream again when it breaks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_api::etcdserverpb::LeaseKeepAliveRequest;
use quorate_api::etcdserverpb::lease_client::LeaseClient;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use super::book::{Answer, Book, Granted};
use super::{Counts, Phase};
use crate::call::Failure;
use crate::pacer::Pacer;

/// Keep-alives that wait in a stream for its connection; more wait in the book.
const ASKS_MAX: usize = 256;

/// Pause before a broken stream is opened again.
const ERROR_PAUSE: Duration = Duration::from_millis(20);

/// Keeps the leases of one stream alive.
pub(super) struct Keeper {
    pub(super) client: LeaseClient<Channel>,
    pub(super) granted: mpsc::Receiver<Granted>,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) counts: Arc<Counts>,
    /// How long an answer is waited for, once nothing more is sent.
    pub(super) timeout: Duration,
}

/// One stream that is open.
struct Open {
    asks: mpsc::Sender<LeaseKeepAliveRequest>,
    answers: Streaming<quorate_api::etcdserverpb::LeaseKeepAliveResponse>,
}

impl Keeper {
    /// Until the end of the run; returns the leases that are not known to be lost.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub(super) async fn run(mut self) -> Result<Book, String> {
        let mut pacer = Pacer::new().map_err(|error| format!("no timer: {error}"))?;
        let mut book = Book::default();
        loop {
            if !self.await_due(&mut book, &mut pacer).await? {
                return Ok(book);
            }
            match self.stream(&mut book, &mut pacer).await {
                Ok(()) => return Ok(book),
                Err(failure) => {
                    self.counts.failed(&failure);
                    book.broken();
                    tokio::time::sleep(ERROR_PAUSE).await;
                }
            }
        }
    }

    /// Waits until something is due: a stream is opened with something to say, since etcd says nothing before.
    /// False at the end of the run.
    async fn await_due(&mut self, book: &mut Book, pacer: &mut Pacer) -> Result<bool, String> {
        loop {
            if *self.phase.borrow_and_update() == Phase::Ending {
                return Ok(false);
            }
            let next = book.next_due();
            if next.is_some_and(|due| due <= Instant::now()) {
                return Ok(true);
            }
            tokio::select! {
                granted = self.granted.recv(), if !self.granted.is_closed() || !self.granted.is_empty() => {
                    granted.into_iter().for_each(|granted| book.granted(granted));
                }
                waited = until(pacer, next) => waited.map_err(|failure| failure.text)?,
                _ = self.phase.changed() => {}
            }
        }
    }

    /// Opens a stream with all that is due. Its head may come with the first answer only.
    async fn open(&mut self, book: &mut Book) -> Result<Open, Failure> {
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        while let Ok(permit) = asks.try_reserve()
            && let Some(id) = book.take_due(Instant::now())
        {
            permit.send(LeaseKeepAliveRequest { id });
        }
        let call = self.client.lease_keep_alive(ReceiverStream::new(asked));
        match tokio::time::timeout(self.timeout, call).await {
            Ok(answers) => Ok(Open { asks, answers: answers?.into_inner() }),
            Err(_) => Err(Failure::client(Code::DeadlineExceeded, "no stream in time")),
        }
    }

    /// Keeps alive until the end of the run, and then takes the answers that are still to come.
    async fn stream(&mut self, book: &mut Book, pacer: &mut Pacer) -> Result<(), Failure> {
        let Open { asks, mut answers } = self.open(book).await?;
        let late = tokio::time::sleep(Duration::MAX);
        tokio::pin!(late);
        let mut ending = false;
        loop {
            if !ending && *self.phase.borrow_and_update() == Phase::Ending {
                ending = true;
                late.as_mut().reset(tokio::time::Instant::now() + self.timeout);
            }
            if ending && book.unanswered() == 0 {
                return Ok(());
            }
            let next = book.next_due();
            let is_due = next.is_some_and(|due| due <= Instant::now());
            tokio::select! {
                answer = answers.message() => match answer? {
                    Some(kept) => self.take(book, kept.id, kept.ttl),
                    None => return Err(Failure::client(Code::Unavailable, "the stream has ended")),
                },
                granted = self.granted.recv(), if !self.granted.is_closed() || !self.granted.is_empty() => {
                    granted.into_iter().for_each(|granted| book.granted(granted));
                }
                // While the server takes no more, what is due waits, and that counts.
                permit = asks.reserve(), if is_due && !ending => {
                    let permit = permit.map_err(|_| Failure::client(Code::Unavailable, "the stream is closed"))?;
                    if let Some(id) = book.take_due(Instant::now()) {
                        permit.send(LeaseKeepAliveRequest { id });
                    }
                }
                waited = until(pacer, next), if !is_due && !ending => waited?,
                _ = self.phase.changed(), if !ending => {}
                () = &mut late, if ending => {
                    self.counts.unanswered(book.unanswered());
                    return Ok(());
                }
            }
        }
    }

    fn take(&self, book: &mut Book, id: i64, ttl_s: i64) {
        let now = Instant::now();
        match book.answered(id, ttl_s, now) {
            Answer::Kept { due } => self.counts.kept(due, now),
            Answer::Lost { early } => self.counts.lost(id, early),
            Answer::Unasked => {
                let text = format!("lease {id} was kept alive and nobody had asked");
                self.counts.failed(&Failure::client(Code::Internal, text));
            }
        }
    }
}

/// Waits for a moment; for ever if there is none.
async fn until(pacer: &mut Pacer, moment: Option<Instant>) -> Result<(), Failure> {
    match moment {
        Some(moment) => pacer
            .until(moment)
            .await
            .map_err(|error| Failure::client(Code::Internal, format!("the timer failed: {error}"))),
        None => std::future::pending().await,
    }
}
