//! How often a client may ping: the rule of gRPC's servers, which etcd's is.
//!
//! A ping that comes sooner than it may after the one before is a strike; the third strike ends the
//! connection. What the server has to say on a stream clears the strikes, since libraries measure
//! bandwidth with pings while answers arrive. Without an open call a client has nothing to keep alive,
//! and a ping is too soon for two hours.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::frames::{Frame, Kind};

/// Strikes that are forgiven.
const STRIKES_MAX: u32 = 2;

/// Pings of a client without an open call may come so often.
const IDLE_MIN_TIME: Duration = Duration::from_secs(2 * 60 * 60);

/// Judges the pings of one connection by the frames that pass.
#[derive(Debug)]
pub(super) struct PingPolicy {
    min_time: Duration,
    strikes: u32,
    last: Option<Instant>,
    /// Streams that the client has opened and nobody has ended; h2 refuses more than it allows.
    open: BTreeSet<u32>,
    /// The newest stream of the client: headers of an older one are trailers.
    newest: u32,
}

impl PingPolicy {
    pub(super) const fn new(min_time: Duration) -> Self {
        Self { min_time, strikes: 0, last: None, open: BTreeSet::new(), newest: 0 }
    }

    /// A frame of the client's. False when it was one ping too many.
    pub(super) fn on_received(&mut self, frame: Frame, now: impl FnOnce() -> Instant) -> bool {
        match frame.kind {
            Kind::Headers if frame.stream > self.newest => {
                self.newest = frame.stream;
                self.open.insert(frame.stream);
            }
            Kind::Reset => {
                self.open.remove(&frame.stream);
            }
            Kind::Ping if !frame.is_ack() => return self.on_ping(now()),
            _ => {}
        }
        true
    }

    /// A frame of the server's.
    pub(super) fn on_sent(&mut self, frame: Frame) {
        if matches!(frame.kind, Kind::Data | Kind::Headers) {
            self.strikes = 0;
            self.last = None;
        }
        if frame.ends_stream() {
            self.open.remove(&frame.stream);
        }
    }

    fn on_ping(&mut self, now: Instant) -> bool {
        let min_time = if self.open.is_empty() { IDLE_MIN_TIME } else { self.min_time };
        let too_soon = self.last.replace(now).is_some_and(|last| now < last + min_time);
        self.strikes += u32::from(too_soon);
        self.strikes <= STRIKES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::Frames;
    use super::*;

    const MIN_TIME: Duration = Duration::from_secs(5);

    fn frame(kind: u8, flags: u8, stream: u8) -> Frame {
        let mut found = None;
        Frames::after(0)
            .feed(&[0, 0, 0, kind, flags, 0, 0, 0, stream], |frame| found = Some(frame));
        found.unwrap()
    }

    struct Client {
        policy: PingPolicy,
        now: Instant,
    }

    impl Client {
        fn new() -> Self {
            Self { policy: PingPolicy::new(MIN_TIME), now: Instant::now() }
        }

        fn call(&mut self, stream: u8) {
            assert!(self.policy.on_received(frame(1, 4, stream), || unreachable!()));
        }

        fn ping_after(&mut self, pause: Duration) -> bool {
            self.now += pause;
            let now = self.now;
            self.policy.on_received(frame(6, 0, 0), || now)
        }

        fn pings_until_refused(&mut self, pause: Duration) -> Option<usize> {
            (1..=100).find(|_| !self.ping_after(pause))
        }
    }

    #[test]
    fn whoever_keeps_to_the_time_may_ping_for_ever() {
        let mut client = Client::new();
        client.call(1);
        assert_eq!(client.pings_until_refused(MIN_TIME), None);
    }

    #[test]
    fn the_third_ping_that_comes_too_soon_is_one_too_many() {
        let mut client = Client::new();
        client.call(1);
        assert_eq!(client.pings_until_refused(MIN_TIME / 2), Some(4));
    }

    #[test]
    fn without_an_open_call_two_hours_have_to_pass() {
        let mut client = Client::new();
        assert_eq!(client.pings_until_refused(2 * MIN_TIME), Some(4));
        let mut client = Client::new();
        assert_eq!(client.pings_until_refused(IDLE_MIN_TIME), None);
    }

    #[test]
    fn a_call_is_open_until_the_server_has_ended_or_the_client_has_reset_it() {
        for ended_by_server in [true, false] {
            let mut client = Client::new();
            client.call(1);
            // A call that the client has said all for is still waited for.
            assert!(client.policy.on_received(frame(0, 1, 1), || unreachable!()));
            assert!(!client.policy.open.is_empty());
            if ended_by_server {
                client.policy.on_sent(frame(1, 5, 1));
            } else {
                assert!(client.policy.on_received(frame(3, 0, 1), || unreachable!()));
            }
            assert!(client.policy.open.is_empty());
        }
    }

    #[test]
    fn what_the_server_says_clears_the_strikes() {
        let mut client = Client::new();
        client.call(1);
        for _ in 0..20 {
            assert!(client.ping_after(Duration::ZERO));
            assert!(client.ping_after(Duration::ZERO));
            client.policy.on_sent(frame(0, 0, 1));
        }
        // Settings, window updates and answers to pings are no news.
        for kind in [4, 8, 6] {
            client.policy.on_sent(frame(kind, 1, 0));
        }
        assert_eq!(client.pings_until_refused(Duration::ZERO), Some(4));
    }

    #[test]
    fn an_answer_to_our_own_ping_is_not_one() {
        let mut client = Client::new();
        for _ in 0..10 {
            assert!(client.policy.on_received(frame(6, 1, 0), || unreachable!()));
        }
    }
}
