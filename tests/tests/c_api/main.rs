//! Programs in C: librelay, the kernel's names, and the classic programs.
//!
//! A test belongs here if it compiles a program, or loads a library.

mod bad_input;
mod classic_module;
mod classic_reader;
mod descriptors_taken;
mod examples;
mod functions;
