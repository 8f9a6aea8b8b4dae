// Closed-loop HTTP load: N connections, each sends its next request when it has checked the last answer.
//
//   load PORT CALLERS SECONDS WARMUP_SECONDS REQUEST_FILE EXPECTED_FILE
//
// REQUEST_FILE holds one whole HTTP/1.1 request. Wherever it says @@@@@@@@@ (nine of them), the number of the request is
// written: nine digits, so the length stays the same. EXPECTED_FILE holds what an answer's body must contain, with the
// same mark for the same number. An answer that is not 200, or does not contain it, is counted as bad, and the first few
// are shown on stderr. Prints one line of JSON; latencies are in microseconds.
//
// In C because a generator in Python costs more than the broker it would measure, and one file because it is compiled
// when the bench begins.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MARK "@@@@@@@@@"
#define DIGITS 9
#define MARKS 16
#define STALLED_S 20

typedef struct { char *bytes; size_t size; size_t marks[MARKS]; int marked; } Text;
typedef struct { int fd; char *in; size_t have, room; uint64_t sent_ns; uint32_t number; } Caller;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + t.tv_nsec;
}

static void die(const char *what) { perror(what); exit(1); }

static Text read_text(const char *path) {
    Text text = {0};
    FILE *file = fopen(path, "rb");
    if (!file) die(path);
    fseek(file, 0, SEEK_END);
    text.size = ftell(file);
    rewind(file);
    text.bytes = malloc(text.size + 1);
    if (fread(text.bytes, 1, text.size, file) != text.size) die(path);
    text.bytes[text.size] = 0;
    fclose(file);
    for (char *at = text.bytes; (at = strstr(at, MARK)) && text.marked < MARKS; at += DIGITS)
        text.marks[text.marked++] = at - text.bytes;
    return text;
}

static void number_text(Text *text, uint32_t number) {
    char digits[DIGITS + 1];
    snprintf(digits, sizeof digits, "%09u", number);
    for (int i = 0; i < text->marked; i++) memcpy(text->bytes + text->marks[i], digits, DIGITS);
}

// The size of the whole answer at the beginning of these bytes, 0 while it is not all there; *body is where it begins.
static size_t whole(const char *in, size_t have, size_t *body) {
    const char *end = memmem(in, have, "\r\n\r\n", 4);
    if (!end) return 0;
    *body = end + 4 - in;
    for (const char *line = memchr(in, '\n', *body); line && line + 1 < end; line = memchr(line + 1, '\n', end - line)) {
        if (!strncasecmp(line + 1, "content-length:", 15)) {
            size_t size = *body + strtoul(line + 16, NULL, 10);
            return have >= size ? size : 0;
        }
    }
    const char *last = memmem(in + *body, have - *body, "0\r\n\r\n", 5);  // chunked: the last chunk is at the very end
    return last && last + 5 == in + have ? have : 0;
}

static Text request, expected;
static uint32_t number = 100000000;
static uint64_t *latencies;
static size_t answers, room = 1 << 16;
static unsigned long bad;

static void note_bad(const char *in, size_t have) {
    if (bad++ < 3) fprintf(stderr, "bad answer: %.*s\n", (int)(have > 700 ? 700 : have), in);
}

static void ask(Caller *caller) {
    caller->number = number++;
    number_text(&request, caller->number);
    caller->sent_ns = now_ns();
    if (write(caller->fd, request.bytes, request.size) != (ssize_t)request.size) die("write");
}

int main(int count, char **arguments) {
    if (count != 7) { fprintf(stderr, "load PORT CALLERS SECONDS WARMUP_SECONDS REQUEST_FILE EXPECTED_FILE\n"); return 2; }
    int port = atoi(arguments[1]), callers = atoi(arguments[2]), open_callers = callers;
    double seconds = atof(arguments[3]), warmup = atof(arguments[4]);
    request = read_text(arguments[5]);
    expected = read_text(arguments[6]);
    latencies = malloc(room * sizeof *latencies);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int poll = epoll_create1(0), one = 1;
    Caller *all = calloc(callers, sizeof *all);
    uint64_t from = now_ns() + warmup * 1e9, until = from + seconds * 1e9, heard = now_ns();
    for (int i = 0; i < callers; i++) {
        Caller *caller = &all[i];
        caller->fd = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(caller->fd, (void *)&address, sizeof address)) die("connect");
        setsockopt(caller->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        caller->in = malloc(caller->room = 1 << 14);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = caller};
        epoll_ctl(poll, EPOLL_CTL_ADD, caller->fd, &event);
        ask(caller);
    }
    struct epoll_event events[256];
    while (open_callers) {
        int ready = epoll_wait(poll, events, 256, 1000);
        if (now_ns() - heard > STALLED_S * 1000000000ull) { fprintf(stderr, "no answer for %d s\n", STALLED_S); return 1; }
        for (int i = 0; i < ready; i++) {
            Caller *caller = events[i].data.ptr;
            if (caller->room - caller->have < 1 << 13) caller->in = realloc(caller->in, caller->room *= 2);
            ssize_t got = read(caller->fd, caller->in + caller->have, caller->room - caller->have);
            if (got <= 0) {
                note_bad("the connection ended", 20);
                close(caller->fd);
                open_callers--;
                continue;
            }
            caller->have += got;
            size_t body, size = whole(caller->in, caller->have, &body);
            if (!size) continue;
            uint64_t at = heard = now_ns();
            number_text(&expected, caller->number);
            int good = size == caller->have && !strncmp(caller->in, "HTTP/1.1 200", 12) &&
                       memmem(caller->in + body, size - body, expected.bytes, expected.size);
            if (!good) note_bad(caller->in, caller->have);
            else if (caller->sent_ns >= from) {
                if (answers == room) latencies = realloc(latencies, (room *= 2) * sizeof *latencies);
                uint64_t took = at - caller->sent_ns;
                latencies[answers++] = took;
            }
            caller->have = 0;
            if (at < until) ask(caller);
            else { close(caller->fd); open_callers--; }
        }
    }
    double took = (now_ns() - from) / 1e9;
    int by_size(const void *a, const void *b) {
        uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
        return (x > y) - (x < y);
    }
    qsort(latencies, answers, sizeof *latencies, by_size);
    double p(double share) { return answers ? latencies[(size_t)(share * (answers - 1))] / 1e3 : 0; }
    printf("{\"answers\":%zu,\"sent\":%u,\"bad\":%lu,\"seconds\":%.4f,\"p50_us\":%.1f,\"p95_us\":%.1f,\"p99_us\":%.1f,\"max_us\":%.1f}\n",
           answers, number - 100000000, bad, took, p(.5), p(.95), p(.99), p(1));
    return 0;
}
