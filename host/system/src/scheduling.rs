//! Who waits for whom when there are more threads than cores. Why, and what it costs: `docs/decisions/0017-preemption.md`.

/// From now on, the calling thread does not take a core from a thread that computes whenever something arrives for it: where
/// no core is idle, it waits for its turn, some milliseconds at most. So do threads that it starts from then on. Where the
/// system refuses that, all is as it was.
#[cfg(target_os = "linux")]
pub fn let_others_compute() {
    let parameter = libc::sched_param { sched_priority: 0 };
    // SAFETY: 0 is the calling thread, and the parameter is only read.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameter) };
}

/// Only Linux has that.
#[cfg(not(target_os = "linux"))]
pub fn let_others_compute() {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::thread;

    use super::*;

    fn policy() -> i32 {
        // SAFETY: it only reads.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn the_thread_and_those_that_it_starts_wait_for_their_turns() {
        let waiting = || {
            let_others_compute();
            [policy(), thread::spawn(policy).join().unwrap()]
        };
        assert_eq!(thread::spawn(waiting).join().unwrap(), [libc::SCHED_BATCH; 2]);
        assert_eq!(policy(), libc::SCHED_OTHER);
    }
}
