//! The calling thread as somebody who can run restartable sequences; where there are none, nobody is.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use relay::rseq::Thread;

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(crate) use nobody::Thread;

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod nobody {
    use relay::writer::Alone;

    #[derive(Clone, Copy, Debug)]
    pub(crate) enum Thread {}

    impl Thread {
        pub(crate) fn current() -> Option<Thread> {
            None
        }

        pub(crate) fn cpu(&self) -> u32 {
            match *self {}
        }

        pub(crate) fn on(self, _cpu: u32) -> Alone {
            match self {}
        }
    }
}
