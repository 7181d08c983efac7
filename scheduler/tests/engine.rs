//! The engine's thread from outside: commands in, events out, drain, faults.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use crossbeam_channel::{Receiver, Sender, bounded};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tokenmill_models::runner::{ContextRules, Geometry, SeqId};
use tokenmill_scheduler::engine::{Engine, EngineLimits};
use tokenmill_scheduler::request::{
    Command, Disconnected, EventSink, FinishReason, Request, SamplingParams, SeqError, SeqEvent,
};
use tokenmill_scheduler::sim::{FakeRunner, FakeSeq};
use tokenmill_scheduler::stats::StepStats;

const GEOMETRY: Geometry = Geometry {
    block_size: 4,
    num_blocks: 64,
    max_batch_tokens: 16,
    max_batch_seqs: 4,
    max_logits_rows: 8,
    max_model_len: 64,
    vocab_size: 50,
    context: ContextRules::PLAIN,
};
/// Longer than anything here takes; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(30);

struct ChannelSink(Sender<SeqEvent>);

impl EventSink for ChannelSink {
    fn send(&mut self, event: SeqEvent) -> Result<(), Disconnected> {
        self.0.try_send(event).map_err(|_| Disconnected)
    }
}

fn request(id: SeqId, max_tokens: u32) -> (Command, Receiver<SeqEvent>) {
    let (sender, events) = bounded(256);
    let sampling = SamplingParams { max_tokens, ..SamplingParams::default() };
    let sink = Box::new(ChannelSink(sender));
    (Command::Add(Box::new(Request { id, prompt: vec![1, 2, 3], sampling, cache_salt: 0, sink })), events)
}

struct Running {
    commands: Sender<Command>,
    stats: Receiver<StepStats>,
    thread: JoinHandle<()>,
}

fn start(runner: FakeRunner, limits: EngineLimits) -> Running {
    let (commands, receiver) = bounded(64);
    let (observed, stats) = bounded(10_000);
    let observe = move |stats: &StepStats, _| observed.try_send(*stats).unwrap();
    let engine = Engine::new(runner, limits, receiver, Box::new(observe));
    Running { commands, stats, thread: thread::spawn(move || engine.run()) }
}

fn terminal(events: &Receiver<SeqEvent>) -> SeqEvent {
    loop {
        let event = events.recv_timeout(PATIENCE).unwrap();
        if matches!(event, SeqEvent::Finished(_) | SeqEvent::Failed(_)) {
            return event;
        }
    }
}

#[test]
fn it_sleeps_until_a_command_comes_and_tells_the_observer() {
    let engine = start(FakeRunner::new(GEOMETRY), EngineLimits::default());
    for id in 0..3 {
        let (command, events) = request(SeqId(id), 5);
        engine.commands.send(command).unwrap();
        assert_eq!(terminal(&events), SeqEvent::Finished(FinishReason::Length));
    }
    engine.commands.send(Command::Drain).unwrap();
    engine.thread.join().unwrap();
    let stats: Vec<StepStats> = engine.stats.try_iter().collect();
    assert_eq!(stats.iter().map(|stats| stats.num_sampled_tokens).sum::<u32>(), 15);
    assert_eq!(stats.iter().map(|stats| stats.num_finished).sum::<u32>(), 3);
    assert!(stats.len() <= 3 * 5 + 4, "{} steps: the engine spins while it has nothing to do", stats.len());
    assert_eq!(stats.last().unwrap().kv_blocks_used, 0);
}

#[test]
fn drain_finishes_what_was_admitted_and_refuses_the_rest() {
    let (commands, receiver) = bounded(64);
    let (first, first_events) = request(SeqId(1), 9);
    let (late, late_events) = request(SeqId(2), 9);
    for command in [first, Command::Drain, late] {
        commands.send(command).unwrap();
    }
    let runner = FakeRunner::new(GEOMETRY);
    let engine = Engine::new(runner, EngineLimits::default(), receiver, Box::new(|_, _| {}));
    engine.run();
    assert_eq!(terminal(&first_events), SeqEvent::Finished(FinishReason::Length));
    assert_eq!(terminal(&late_events), SeqEvent::Failed(SeqError::Draining));
    assert!(commands.send(Command::Abort(SeqId(1))).is_err(), "the channel closes with the engine");
}

#[test]
fn it_returns_when_every_sender_has_gone() {
    let engine = start(FakeRunner::new(GEOMETRY), EngineLimits::default());
    let (command, events) = request(SeqId(1), 3);
    engine.commands.send(command).unwrap();
    drop(engine.commands);
    engine.thread.join().unwrap();
    assert_eq!(terminal(&events), SeqEvent::Finished(FinishReason::Length));
}

#[test]
fn a_failed_step_ends_its_sequences_and_the_loop_goes_on() {
    let engine = start(FakeRunner::new(GEOMETRY).failing_at([2]), EngineLimits::default());
    let (command, events) = request(SeqId(1), 9);
    engine.commands.send(command).unwrap();
    assert!(matches!(terminal(&events), SeqEvent::Failed(SeqError::Runner(_))));
    let (command, events) = request(SeqId(2), 9);
    engine.commands.send(command).unwrap();
    assert_eq!(terminal(&events), SeqEvent::Finished(FinishReason::Length));
}

#[test]
fn logits_that_are_not_numbers_fail_one_sequence() {
    let poisoned = FakeSeq { number: 1, is_poisoned: true, ..FakeSeq::default() };
    let engine = start(FakeRunner::new(GEOMETRY), EngineLimits::default());
    let (bad, bad_events) = request(poisoned.id(), 9);
    let (good, good_events) = request(SeqId(2), 9);
    engine.commands.send(bad).unwrap();
    engine.commands.send(good).unwrap();
    assert_eq!(terminal(&bad_events), SeqEvent::Failed(SeqError::NotFinite));
    assert_eq!(terminal(&good_events), SeqEvent::Finished(FinishReason::Length));
}

#[test]
fn the_queue_has_its_bound() {
    let (commands, receiver) = bounded(64);
    let limits = EngineLimits { max_waiting: 2, ..EngineLimits::default() };
    let mut engine = Engine::new(FakeRunner::new(GEOMETRY), limits, receiver, Box::new(|_, _| {}));
    let events: Vec<Receiver<SeqEvent>> = (0..3)
        .map(|id| {
            let (command, events) = request(SeqId(id), 9);
            commands.send(command).unwrap();
            events
        })
        .collect();
    assert_eq!(engine.step().num_refused, 1);
    assert_eq!(terminal(&events[2]), SeqEvent::Failed(SeqError::QueueFull));
    while engine.has_work() {
        engine.step();
    }
    assert_eq!(terminal(&events[1]), SeqEvent::Finished(FinishReason::Length));
}

#[test]
fn a_dropped_receiver_frees_within_one_step() {
    let (commands, receiver) = bounded(64);
    let mut engine = Engine::new(FakeRunner::new(GEOMETRY), EngineLimits::default(), receiver, Box::new(|_, _| {}));
    let (command, events) = request(SeqId(1), 50);
    commands.send(command).unwrap();
    assert!(engine.step().kv_blocks_used > 0);
    drop(events);
    let stats = engine.step();
    assert_eq!((stats.num_aborted, stats.kv_blocks_used, stats.num_running), (1, 0, 0));
}
