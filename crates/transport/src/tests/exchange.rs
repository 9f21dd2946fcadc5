//! Messages between nodes that behave.

use super::*;

#[tokio::test]
async fn three_nodes_exchange_messages_both_ways() {
    let ca = authority();
    let mut nodes =
        vec![Node::open(&ca, 1).await, Node::open(&ca, 2).await, Node::open(&ca, 3).await];
    for one in &nodes {
        for other in nodes.iter().filter(|other| other.id != one.id) {
            one.dial(other);
        }
    }
    for node in &mut nodes {
        // Both peers, in whatever order they come up.
        let mut up = 0;
        while up < 2 {
            node.wait(|event| matches!(event, Event::Peer(_, PeerEvent::Up { .. })).then_some(()))
                .await;
            up += 1;
        }
    }
    for node in &nodes {
        let from = node.id.value();
        for to in (1..=3).filter(|to| *to != from) {
            node.transport.send(NodeId(to), vec![beat(from, to, 10 * from + to)]);
            node.transport.send(NodeId(to), vec![append(from, to, 2, 5, 100)]);
        }
    }
    for node in &mut nodes {
        let messages = node.collect(4).await;
        let to = node.id.value();
        for from in (1..=3).filter(|from| *from != to) {
            assert!(messages.contains(&beat(from, to, 10 * from + to)));
            assert!(messages.contains(&append(from, to, 2, 5, 100)));
        }
        assert_eq!(node.figures.counter("quorate_transport_received_messages_total{append}"), 2);
        assert_eq!(node.figures.counter("quorate_transport_sent_messages_total{control}"), 2);
        assert_eq!(node.figures.gauge("quorate_transport_queued_bytes{append}"), 0.0);
    }
}

#[tokio::test]
async fn each_groups_messages_keep_their_order() {
    const GROUPS: u64 = 20;
    const EACH: u64 = 500;
    let (one, mut two) = pair(&authority()).await;
    for index in 1..=EACH {
        let messages = (1..=GROUPS).map(|group| append(1, 2, group, index, 64)).collect();
        one.transport.send(NodeId(2), messages);
    }
    let mut last = BTreeMap::<GroupId, u64>::new();
    for message in two.collect((GROUPS * EACH) as usize).await {
        let last = last.entry(message.group).or_default();
        assert_eq!(index_of(&message), *last + 1, "group {}", message.group);
        *last += 1;
    }
    assert_eq!(last.len() as u64, GROUPS);
}

#[tokio::test]
async fn what_waits_together_travels_in_one_frame_per_lane() {
    let (one, mut two) = pair(&authority()).await;
    for index in 1..=100 {
        one.transport.send(NodeId(2), vec![append(1, 2, 7, index, 10)]);
    }
    let (from, messages) = two.messages().await;
    assert_eq!((from, messages.len()), (NodeId(1), 100));
    assert_eq!(one.figures.counter("quorate_transport_sent_frames_total{append}"), 1);
}

#[tokio::test]
async fn frames_of_eight_mebibytes_arrive_whole() {
    let (one, mut two) = pair(&authority()).await;
    let sent: Vec<_> = (1..=3).map(|index| append(1, 2, 7, index, 8 << 20)).collect();
    one.transport.send(NodeId(2), sent.clone());
    assert!(two.collect(3).await == sent);
    // A lone message may exceed the size at which frames are cut.
    assert_eq!(one.figures.counter("quorate_transport_sent_frames_total{append}"), 3);
}

#[tokio::test]
async fn other_threads_may_send() {
    const EACH: u64 = 2_000;
    let (one, mut two) = pair(&authority()).await;
    let senders = (1..=3).map(|group| {
        let transport = one.transport.clone();
        std::thread::spawn(move || {
            for index in 1..=EACH {
                transport.send(NodeId(2), vec![append(1, 2, group, index, 10)]);
            }
        })
    });
    let senders: Vec<_> = senders.collect();
    let mut last = BTreeMap::<GroupId, u64>::new();
    for message in two.collect(3 * EACH as usize).await {
        let last = last.entry(message.group).or_default();
        assert_eq!(index_of(&message), *last + 1);
        *last += 1;
    }
    senders.into_iter().for_each(|sender| sender.join().unwrap());
}

#[tokio::test]
async fn a_message_above_the_bound_is_dropped_and_counted() {
    let (one, mut two) = pair(&authority()).await;
    one.transport.send(NodeId(2), vec![append(1, 2, 7, 1, 17 << 20), append(1, 2, 7, 2, 5)]);
    assert_eq!(index_of(&two.collect(1).await[0]), 2);
    assert_eq!(one.figures.counter("quorate_transport_dropped_messages_total{oversized}"), 1);
}

#[tokio::test]
async fn nothing_waits_for_a_peer_that_is_away() {
    let ca = authority();
    let one = Node::open(&ca, 1).await;
    one.transport.send(NodeId(2), vec![beat(1, 2, 1)]);
    one.transport.add_peer(NodeId(2), "n2", "127.0.0.1:9".into()).unwrap();
    one.transport.send(NodeId(2), vec![beat(1, 2, 1), append(1, 2, 7, 1, 10)]);
    assert_eq!(one.figures.counter("quorate_transport_dropped_messages_total{disconnected}"), 3);
    assert_eq!(one.figures.gauge("quorate_transport_queued_bytes{append}"), 0.0);
}

#[tokio::test]
async fn a_peer_that_restarts_is_found_again() {
    let ca = authority();
    let (mut one, two) = pair(&ca).await;
    let address = two.transport.local_addr();
    two.transport.close().await;
    let reason = one.down(2).await;
    assert!(reason.contains("shutting down"), "{reason}");

    let mut recipe = Recipe::new(&ca, 2);
    recipe.config.listen = address;
    recipe.words.session = 2;
    let mut two = recipe.open().await;
    two.dial(&one);
    assert_eq!(one.up(2).await.session, 2);
    two.up(1).await;
    one.transport.send(NodeId(2), vec![beat(1, 2, 1)]);
    two.transport.send(NodeId(1), vec![beat(2, 1, 2)]);
    assert_eq!(two.collect(1).await, [beat(1, 2, 1)]);
    assert_eq!(one.collect(1).await, [beat(2, 1, 2)]);
    assert_eq!(one.figures.counter("quorate_transport_reconnects_total{other}"), 1);
}

#[tokio::test]
async fn a_new_process_of_a_peer_ends_the_connection_to_its_old_one() {
    let ca = authority();
    let mut one = Node::open(&ca, 1).await;
    // A process that dies says nothing, as this one.
    let dead = Bare::new(&tls_of(&ca, CLUSTER, "n2"), 2);
    one.dial_at(2, dead.address());
    let connection = dead.accept(NodeId(1)).await;
    assert_eq!(one.up(2).await.session, 1);

    let mut alive = Bare::new(&tls_of(&ca, CLUSTER, "n2"), 2);
    alive.words.session = 2;
    let _incoming = alive.greet(&one).await.unwrap();
    assert_eq!(code_of(&closed(&connection).await).0, u64::from(crate::close::SUPERSEDED));
    one.down(2).await;
    // And it dials again at once.
    let _outgoing = dead.accept(NodeId(1)).await;
    one.up(2).await;
}

#[tokio::test]
async fn a_newer_connection_of_a_node_replaces_its_older_one() {
    let ca = authority();
    let one = Node::open(&ca, 1).await;
    let bare = Bare::new(&tls_of(&ca, CLUSTER, "n2"), 2);
    let first = bare.greet(&one).await.unwrap();
    let second = bare.greet(&one).await.unwrap();
    assert_eq!(code_of(&closed(&first).await).0, u64::from(crate::close::SUPERSEDED));
    assert!(second.close_reason().is_none());
}

#[tokio::test]
async fn a_removed_peer_is_closed_both_ways_and_not_dialed_again() {
    let (mut one, mut two) = pair(&authority()).await;
    one.transport.remove_peer(NodeId(2));
    assert!(two.refused(1).await.contains("removed"));
    one.transport.send(NodeId(2), vec![beat(1, 2, 1)]);
    assert_eq!(one.figures.counter("quorate_transport_dropped_messages_total{disconnected}"), 1);
    // It may come back when the node lets it in, and be added again.
    one.dial(&two);
    one.up(2).await;
}

#[tokio::test]
async fn segment_offload_is_in_use() {
    let (one, mut two) = pair(&authority()).await;
    one.transport.send(NodeId(2), vec![append(1, 2, 7, 1, 4 << 20)]);
    two.collect(1).await;
    // Every Linux since 4.18 segments UDP.
    assert!(one.transport.segments_per_send() > 1);
    assert!(one.figures.gauge("quorate_transport_segments_per_send") > 1.0);
}

#[tokio::test]
async fn peers_with_a_label_show_their_round_trip_time() {
    let ca = authority();
    let (mut one, mut two) = (Node::open(&ca, 1).await, Node::open(&ca, 2).await);
    one.transport.label_peer("n2", &one.figures);
    one.dial(&two);
    one.up(2).await;
    one.transport.send(NodeId(2), vec![beat(1, 2, 1)]);
    two.collect(1).await;
    assert!(one.figures.gauge("quorate_transport_rtt_us{n2}") > 0.0);
    assert_eq!(one.figures.gauge("quorate_transport_connected_peers{n2}"), 1.0);
    two.transport.close().await;
    one.down(2).await;
    assert_eq!(one.figures.gauge("quorate_transport_connected_peers{n2}"), 0.0);
}

#[tokio::test]
async fn settings_out_of_bounds_are_refused() {
    let ca = authority();
    let open = |change: fn(&mut TransportConfig)| {
        let mut recipe = Recipe::new(&ca, 1);
        change(&mut recipe.config);
        let (events, _) = mpsc::unbounded_channel();
        let probe = Probe { words: recipe.words, refuse: Mutex::default(), events };
        async move {
            let figures = Figures::default();
            let link = Arc::new(Straight);
            let result = Transport::open(recipe.config, Arc::new(probe), link, &figures).await;
            result.map(|_| ()).map_err(|error| error.to_string())
        }
    };
    assert_eq!(open(|_| {}).await, Ok(()));
    assert!(open(|config| config.lanes = 0).await.unwrap_err().contains("lanes"));
    assert!(open(|config| config.limits.mtu_max = 9_000).await.unwrap_err().contains("mtu_max"));
    assert!(open(|config| config.name.clear()).await.unwrap_err().contains("name"));
    let error = open(|config| config.limits.lane_bytes_max = 1).await.unwrap_err();
    assert!(error.contains("lane_bytes_max"));
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_heard_all_the_same_until_it_is_gone() {
    let ca = authority();
    let mut recipe = Recipe::new(&ca, 1);
    recipe.config.limits.keep_alive_interval = Duration::from_millis(5);
    recipe.config.limits.idle_timeout = Duration::from_millis(500);
    let mut one = recipe.open().await;
    let two = Bare::new(&tls_of(&ca, CLUSTER, "n2"), 2);
    one.dial_at(2, two.address());
    assert_eq!(one.transport.pulses(), BTreeMap::from([(NodeId(2), None)]), "not yet");
    let connection = two.accept(NodeId(1)).await;
    let session = one.up(2).await.session;
    let pulse = |one: &Node| one.transport.pulses()[&NodeId(2)];
    let first = pulse(&one).expect("connected");
    assert_eq!(first.session, session);
    let beats = async {
        while pulse(&one).is_some_and(|now| now.datagrams < first.datagrams + 20) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, beats).await.expect("its answers to keep-alives");
    assert!(pulse(&one).is_some(), "it is there");
    connection.close(0u8.into(), b"");
    one.down(2).await;
    assert_eq!(pulse(&one), None);
}

#[tokio::test]
async fn labels_of_peers_are_bounded() {
    let one = Node::open(&authority(), 1).await;
    (0..100).for_each(|peer| one.transport.label_peer(&format!("p{peer}"), &one.figures));
    assert_eq!(one.figures.gauge("quorate_transport_connected_peers{p63}"), 0.0);
    assert!(!one.figures.knows("quorate_transport_connected_peers{p64}"));
}
