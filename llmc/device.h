// Memory and the clock of the device the ops run on. On the CPU it is the host itself.
#pragma once
#include <cstddef>
#include <string>
#include "llmc/types.h"

/// Zeroed memory, aligned to 256 bytes (on the CPU to pages, every one touched). Throws std::bad_alloc when there is not enough.
void* device_alloc(size_t bytes);
/// What it takes for so many bytes: whole pages.
size_t device_alloc_bytes(size_t bytes);
void device_free(void* memory);
void device_zero(void* memory, size_t bytes, Stream stream);
/// Copies from and to the host wait: when they return, the data is there.
void copy_to_device(void* device, const void* host, size_t bytes, Stream stream);
void copy_to_host(void* host, const void* device, size_t bytes, Stream stream);
void copy_on_device(void* to, const void* from, size_t bytes, Stream stream);
/// Waits until everything on the stream is done.
void device_wait(Stream stream);

/// One line for people: processor, threads, instruction set; or the GPU's name.
std::string device_name();
/// Bytes that device_alloc could still give.
size_t device_free_bytes();
/// Dense matrix-product peak in floatX, FLOP/s: on the CPU measured (the better of the products 2048 x 768 x 3072 and
/// 2048 x 3072 x 768, rows x out x in; 30 MB while it lasts), from the data sheet on a GPU; 0 if unknown.
double device_peak_flops();
/// Memory that measuring it takes, and gives back.
size_t device_peak_bytes();
