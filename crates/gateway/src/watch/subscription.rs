//! A watch of the gateway's own: for services that wait for what happens to keys.

use std::sync::Arc;

use quorate_types::KeyRange;
use quorate_types::kv::WatchEvent;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;
use tonic::Status;

use super::catch_up::{self, Read};
use super::ending::{Ending, must_end};
use super::hub::Hub;
use super::registry::{StreamId, Wish};
use super::stream::LOOK_AGAIN;
use crate::backend::Backend;

/// The events of some ranges after a revision. Ends when it is dropped.
///
/// It has its place in the registry beside the clients' streams, and the same bounds: what does not fit is read
/// from the rows.
pub(crate) struct Subscription<B: Backend> {
    hub: Arc<Hub<B>>,
    id: StreamId,
    news: Arc<Notify>,
    ending: watch::Receiver<Ending>,
    /// The last read found nothing at all, and the next has to wait.
    found_nothing: bool,
}

/// What a [`Subscription`] is told.
#[derive(Debug)]
pub(crate) enum Told {
    /// What happened next in one of its ranges; never nothing.
    Events(Vec<WatchEvent>),
    /// What happened next is compacted.
    Compacted,
}

impl<B: Backend> Subscription<B> {
    /// Follows ranges from after a revision on. None of them may be empty.
    ///
    /// # Errors
    /// When the replica cannot be followed.
    pub(crate) async fn open(
        hub: &Arc<Hub<B>>,
        ranges: impl IntoIterator<Item = KeyRange> + Send,
        after: i64,
    ) -> Result<Self, Status> {
        let ranges: Vec<_> = ranges.into_iter().collect();
        let news = Arc::new(Notify::new());
        let id = hub.with(|registry| registry.open_stream(Arc::clone(&news)));
        let (hub, ending) = (Arc::clone(hub), hub.ending());
        let opened = Self { hub, id, news, ending, found_nothing: false };
        opened.hub.ensure_followed().await?;
        for range in ranges {
            let wish = Wish { range, no_put: false, no_delete: false };
            let created =
                opened.hub.with(|registry| registry.create(opened.id, 0, wish, after + 1));
            assert!(created.is_ok(), "the range is not empty, and its number is the registry's");
        }
        Ok(opened)
    }

    /// Waits for what happens next. Of one range it comes in order and whole. May be dropped at any time.
    ///
    /// # Errors
    /// When the gateway ends, nobody leads and that is required, this node is cut off, or the rows cannot be read; then
    /// it may be asked again.
    pub(crate) async fn next(&mut self, requires_leader: bool) -> Result<Told, Status> {
        let mut ending = self.ending.clone();
        tokio::select! {
            why = must_end(&mut ending, requires_leader) => Err(why.into()),
            told = self.told() => told,
        }
    }

    async fn told(&mut self) -> Result<Told, Status> {
        loop {
            if let Some(note) = self.hub.with(|registry| registry.take(self.id)) {
                let events = note.batch.events();
                let picked = note.picks.iter().map(|place| events[*place as usize].clone());
                return Ok(Told::Events(picked.collect()));
            }
            match self.hub.with(|registry| registry.next_lagging(self.id, -1)) {
                None => self.news.notified().await,
                Some((watch, wish, next)) => {
                    if let Some(told) = self.read(watch, &wish, next).await? {
                        return Ok(told);
                    }
                }
            }
        }
    }

    /// A step of a watcher that lags.
    async fn read(&mut self, watch: i64, wish: &Wish, next: i64) -> Result<Option<Told>, Status> {
        if self.found_nothing {
            sleep(LOOK_AGAIN).await;
        }
        let turn = self.hub.turn_to_read().await?;
        let Read { found, .. } = catch_up::read(&self.hub.desk, &wish.range, next, false).await?;
        drop(turn);
        if found.compacted.is_some() {
            return Ok(Some(Told::Compacted));
        }
        let after = found.through.max(next - 1);
        let joined = self.hub.with(|registry| registry.join(self.id, watch, after + 1));
        self.found_nothing = !joined && found.through < next;
        Ok((!found.events.is_empty()).then_some(Told::Events(found.events)))
    }
}

impl<B: Backend> Drop for Subscription<B> {
    fn drop(&mut self) {
        self.hub.with(|registry| registry.close_stream(self.id));
    }
}
