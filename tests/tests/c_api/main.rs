//! Programs in C: librelay, the kernel's names, and the classic programs. The package for Python.
//!
//! A test belongs here if it compiles a program, or loads a library.

mod areas;
mod c_api;
mod c_api_bad_input;
mod c_examples;
mod c_libraries;
mod classic_module;
mod classic_reader;
mod descriptors_taken;
mod log_macros;
mod python_package;
mod timed;
