//! Strangers that send anything, and members that do not keep to the protocol.

use tokio::net::UdpSocket;

use super::*;
use crate::close;

/// Two nodes that are connected, and a third that will misbehave.
async fn victims() -> (Node, Node, Bare) {
    let ca = authority();
    let (one, two) = pair(&ca).await;
    (one, two, Bare::new(&tls_of(&ca, CLUSTER, "n3"), 3))
}

/// The victims still talk to each other.
async fn unharmed(one: &Node, two: &mut Node) {
    one.transport.send(NodeId(2), vec![beat(1, 2, 99)]);
    assert_eq!(two.collect(1).await, [beat(1, 2, 99)]);
}

fn framed(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap();
    [&length.to_le_bytes(), body].concat()
}

#[tokio::test]
async fn random_bytes_at_the_port_disturb_nothing() {
    let (one, mut two, _) = victims().await;
    let socket = UdpSocket::bind(loopback()).await.unwrap();
    let mut rng = fastrand::Rng::with_seed(42);
    for round in 0..2_000 {
        let mut bytes = vec![0; rng.usize(0..1_400)];
        rng.fill(&mut bytes);
        // Some look like the beginning of a handshake.
        if round % 3 == 0 && bytes.len() > 5 {
            bytes[..5].copy_from_slice(&[0xc3, 0, 0, 0, 1]);
        }
        let target = if round % 2 == 0 { &one } else { &two };
        socket.send_to(&bytes, target.transport.local_addr()).await.unwrap();
    }
    unharmed(&one, &mut two).await;
}

#[tokio::test]
async fn garbage_in_frames_closes_that_connection_with_a_code_and_no_other() {
    let (one, mut two, bare) = victims().await;
    let mut rng = fastrand::Rng::with_seed(7);
    for kind in [StreamKind::Control, StreamKind::Append, StreamKind::Request] {
        for _ in 0..20 {
            let mut garbage = vec![0; rng.usize(1..300)];
            rng.fill(&mut garbage);
            // Never the version, or an empty frame would be fine.
            garbage[0] |= 2;
            let connection = bare.greet(&one).await.unwrap();
            let mut send = match kind {
                StreamKind::Request => connection.open_bi().await.unwrap().0,
                _ => connection.open_uni().await.unwrap(),
            };
            let bytes = [&kind.preface(0)[..], &framed(&garbage)].concat();
            // The other side may be faster than we are.
            let _ = send.write_all(&bytes).await;
            let (code, reason) = code_of(&closed(&connection).await);
            assert_eq!(code, u64::from(close::MALFORMED), "{reason}");
        }
    }
    unharmed(&one, &mut two).await;
}

#[tokio::test]
async fn damaged_frames_never_panic() {
    let (one, mut two, bare) = victims().await;
    let mut rng = fastrand::Rng::with_seed(9);
    let mut buf = bytes::BytesMut::new();
    quorate_types::codec::put_frame_header(&mut buf);
    for index in 1..5 {
        quorate_types::codec::put_message(&mut buf, &append(3, 1, 7, index, 20));
    }
    for _ in 0..100 {
        let mut damaged = buf.to_vec();
        let at = rng.usize(0..damaged.len());
        damaged[at] ^= 1 << rng.u8(0..8);
        damaged.truncate(rng.usize(0..=damaged.len()));
        let connection = bare.greet(&one).await.unwrap();
        let mut send = connection.open_uni().await.unwrap();
        let bytes = [&StreamKind::Append.preface(0)[..], &framed(&damaged)].concat();
        let _ = send.write_all(&bytes).await;
        // The end of a lane ends its connection, if the frame has not.
        let _ = send.finish();
        assert_eq!(code_of(&closed(&connection).await).0, u64::from(close::MALFORMED));
    }
    unharmed(&one, &mut two).await;
}

#[tokio::test]
async fn an_announced_frame_above_the_bound_is_refused_unread() {
    let (one, mut two, bare) = victims().await;
    let connection = bare.greet(&one).await.unwrap();
    let mut send = connection.open_uni().await.unwrap();
    let bytes = [&StreamKind::Append.preface(0)[..], &u32::MAX.to_le_bytes()].concat();
    send.write_all(&bytes).await.unwrap();
    let (code, reason) = code_of(&closed(&connection).await);
    assert_eq!(code, u64::from(close::TOO_LARGE));
    assert!(reason.contains("4294967295 bytes"), "{reason}");
    unharmed(&one, &mut two).await;
}

#[tokio::test]
async fn streams_that_are_none_of_ours_close_the_connection() {
    let (one, mut two, bare) = victims().await;
    let preface = StreamKind::Request.preface(0);
    // A kind that does not exist, a request lane one way, a control lane both ways.
    for (bytes, both) in [([77, 0], false), (preface, false), ([2, 0], true), ([1, 0], true)] {
        let connection = bare.greet(&one).await.unwrap();
        let mut send = if both {
            connection.open_bi().await.unwrap().0
        } else {
            connection.open_uni().await.unwrap()
        };
        send.write_all(&bytes).await.unwrap();
        assert_eq!(code_of(&closed(&connection).await).0, u64::from(close::MALFORMED));
    }
    unharmed(&one, &mut two).await;
}

#[tokio::test]
async fn a_second_request_lane_closes_the_connection() {
    let (one, mut two, bare) = victims().await;
    let connection = bare.greet(&one).await.unwrap();
    let mut lanes = Vec::new();
    for _ in 0..2 {
        let (mut send, recv) = connection.open_bi().await.unwrap();
        send.write_all(&StreamKind::Request.preface(0)).await.unwrap();
        lanes.push((send, recv));
    }
    assert_eq!(code_of(&closed(&connection).await).0, u64::from(close::MALFORMED));
    unharmed(&one, &mut two).await;
}

#[tokio::test]
async fn a_flood_of_streams_closes_the_connection() {
    let (one, mut two, bare) = victims().await;
    let connection = bare.greet(&one).await.unwrap();
    let flood = async {
        loop {
            let Ok(mut send) = connection.open_uni().await else { break };
            // Reset at once: gives the place back, as in the attack of that name on HTTP/2.
            if send.write_all(&StreamKind::Append.preface(0)).await.is_err() {
                break;
            }
            let _ = send.reset(0u32.into());
        }
    };
    tokio::time::timeout(PATIENCE, flood).await.expect("not stopped");
    assert_eq!(code_of(&closed(&connection).await).0, u64::from(close::MALFORMED));
    unharmed(&one, &mut two).await;
}

#[tokio::test]
async fn nothing_is_delivered_before_the_hello() {
    let (mut one, mut two, bare) = victims().await;
    let connection = bare.dial(&one).await.unwrap();
    let mut frame = bytes::BytesMut::new();
    quorate_types::codec::put_frame_header(&mut frame);
    quorate_types::codec::put_message(&mut frame, &beat(3, 1, 1));
    let mut early = connection.open_uni().await.unwrap();
    let bytes = [&StreamKind::Control.preface(0)[..], &framed(&frame)].concat();
    early.write_all(&bytes).await.unwrap();
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    let garbage = [&StreamKind::Hello.preface(0)[..], &framed(b"no hello")].concat();
    send.write_all(&garbage).await.unwrap();
    assert_eq!(code_of(&closed(&connection).await).0, u64::from(close::MALFORMED));
    two.transport.send(NodeId(1), vec![beat(2, 1, 5)]);
    assert_eq!(one.messages().await, (NodeId(2), vec![beat(2, 1, 5)]));
    unharmed(&one, &mut two).await;
}

#[tokio::test]
async fn a_hello_too_large_is_refused() {
    let (one, _, bare) = victims().await;
    let connection = bare.dial(&one).await.unwrap();
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    let bytes = [&StreamKind::Hello.preface(0)[..], &framed(&vec![0; HELLO_BYTES_MAX + 1])];
    let _ = send.write_all(&bytes.concat()).await;
    assert_eq!(code_of(&closed(&connection).await).0, u64::from(close::TOO_LARGE));
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_ended() {
    let ca = authority();
    let mut recipe = Recipe::new(&ca, 1);
    recipe.config.limits.handshake_timeout = Duration::from_millis(300);
    let one = recipe.open().await;
    let bare = Bare::new(&tls_of(&ca, CLUSTER, "n3"), 3);
    let connection = bare.dial(&one).await.unwrap();
    assert_eq!(code_of(&closed(&connection).await).0, u64::from(close::TIMEOUT));
}

#[tokio::test]
async fn a_flood_of_handshakes_is_held_down_and_peers_go_on() {
    let ca = authority();
    let mut recipe = Recipe::new(&ca, 1);
    recipe.config.limits.handshakes_max = 8;
    let mut one = recipe.open().await;
    let mut two = Node::open(&ca, 2).await;
    one.dial(&two);
    two.dial(&one);
    one.up(2).await;
    two.up(1).await;
    // Each of these finishes TLS and then says nothing.
    let bare = Bare::new(&tls_of(&ca, CLUSTER, "n3"), 3);
    let name = crate::identity::certificate_name(CLUSTER, "n1").unwrap();
    let dial = || bare.endpoint.connect(one.transport.local_addr(), &name).unwrap();
    let flood: Vec<_> = (0..50).map(|_| dial()).collect();
    let flooded = async {
        while one.figures.counter("quorate_transport_refused_handshakes_total{flood}") == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, flooded).await.expect("all are let in");
    unharmed(&one, &mut two).await;
    drop(flood);
}

#[tokio::test]
async fn a_member_speaks_for_itself_only() {
    let (mut one, _two, bare) = victims().await;
    let connection = bare.greet(&one).await.unwrap();
    let mut frame = bytes::BytesMut::new();
    quorate_types::codec::put_frame_header(&mut frame);
    for message in [beat(2, 1, 1), beat(3, 2, 2), beat(3, 1, 3)] {
        quorate_types::codec::put_message(&mut frame, &message);
    }
    let mut send = connection.open_uni().await.unwrap();
    let bytes = [&StreamKind::Control.preface(0)[..], &framed(&frame)].concat();
    send.write_all(&bytes).await.unwrap();
    assert_eq!(one.messages().await, (NodeId(3), vec![beat(3, 1, 3)]));
    assert_eq!(one.figures.counter("quorate_transport_dropped_messages_total{misaddressed}"), 2);
}

#[tokio::test]
async fn a_full_lane_drops_appends_while_beats_go_through() {
    let ca = authority();
    let mut recipe = Recipe::new(&ca, 1);
    recipe.config.limits.frame_bytes_max = 64 << 10;
    recipe.config.limits.frame_bytes_target = 16 << 10;
    recipe.config.limits.lane_bytes_max = 256 << 10;
    let mut one = recipe.open().await;
    // It takes 64 KiB per stream, and reads votes and beats only.
    let slow = Bare::with_window(&tls_of(&ca, CLUSTER, "n2"), 2, 64 << 10);
    one.dial_at(2, slow.address());
    let connection = slow.accept(NodeId(1)).await;
    one.up(2).await;

    let dropped = || one.figures.counter("quorate_transport_dropped_messages_total{full}");
    let mut index = 0;
    while dropped() == 0 {
        index += 1;
        one.transport.send(NodeId(2), vec![append(1, 2, 7, index, 8 << 10)]);
        tokio::task::yield_now().await;
    }
    let queued = one.figures.gauge("quorate_transport_queued_bytes{append}");
    assert!(queued <= f64::from(256 << 10), "{queued} bytes");
    let full = dropped();
    for round in 1..=10 {
        one.transport.send(NodeId(2), vec![beat(1, 2, round)]);
    }
    assert_eq!(dropped(), full);

    let mut unread = Vec::new();
    let mut control = loop {
        let mut frames = FrameReader::new(connection.accept_uni().await.unwrap());
        let preface = frames.preface().await.unwrap();
        if StreamKind::of(preface) == Some(StreamKind::Control) {
            break frames;
        }
        unread.push(frames);
    };
    let mut rounds = Vec::new();
    while rounds.len() < 10 {
        let frame = control.next(1 << 20).await.unwrap();
        let (messages, _) = quorate_types::codec::take_frame(frame).unwrap();
        rounds.extend(messages.iter().filter_map(round_of));
    }
    assert_eq!(rounds, (1..=10).collect::<Vec<_>>());
}

#[tokio::test]
async fn of_too_many_beats_the_oldest_are_dropped() {
    let ca = authority();
    let mut recipe = Recipe::new(&ca, 1);
    recipe.config.limits.control_bytes_max = 1 << 10;
    let (mut one, mut two) = (recipe.open().await, Node::open(&ca, 2).await);
    one.dial(&two);
    one.up(2).await;
    // All at once, before the writer runs.
    let beats: Vec<_> = (1..=100).map(|round| beat(1, 2, round)).collect();
    one.transport.send(NodeId(2), beats);
    let (_, messages) = two.messages().await;
    let rounds: Vec<_> = messages.iter().filter_map(round_of).collect();
    assert_eq!(rounds.last(), Some(&100));
    let kept = rounds.len() as u64;
    let dropped = one.figures.counter("quorate_transport_dropped_messages_total{full}");
    assert_eq!(kept + dropped, 100);
    assert!((1..100).contains(&kept));
}
