/* What would keep the office's memory from being written to an image: files that were deleted and are still in use, since
 * nothing could open them again. What is in memory (/dev/shm, memfd, System V) comes along with it. */
#include "officed.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OBSTACLES_MAX = 32 };

struct list {
    char *at;
    size_t room, n;
    int found;
};

static int is_obstacle(const char *path) {
    size_t n = strlen(path);
    return n > 10 && !strcmp(path + n - 10, " (deleted)") && *path == '/' && strncmp(path, "/dev/", 5) && strncmp(path, "/memfd:", 7) &&
           strncmp(path, "/SYSV", 5);
}

static void add(struct list *l, const char *pid, const char *path) {
    if (l->found >= OBSTACLES_MAX) return;
    l->found++;
    l->n += add_line(l->at + l->n, l->room - l->n, "obstacle %s %.300s", pid, path);
}

static void look_at_files(struct list *l, const char *pid) {
    char name[300], path[4096];
    snprintf(name, sizeof name, "/proc/%.20s/fd", pid);
    DIR *dir = opendir(name);
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        ssize_t n = readlinkat(dirfd(dir), entry->d_name, path, sizeof path - 1);
        if (n > 0 && (path[n] = 0, is_obstacle(path))) add(l, pid, path);
    }
    if (dir) closedir(dir);
}

static void look_at_mappings(struct list *l, const char *pid) {
    char name[300], line[4352];
    snprintf(name, sizeof name, "/proc/%.20s/maps", pid);
    FILE *maps = fopen(name, "re");
    while (maps && fgets(line, sizeof line, maps)) {
        char *path = strchr(line, '/');
        line[strcspn(line, "\n")] = 0;
        if (path && is_obstacle(path)) add(l, pid, path);
    }
    if (maps) fclose(maps);
}

size_t list_obstacles(char *at, size_t room) {
    struct list l = {at, room, 0, 0};
    DIR *proc = own_process_space ? opendir("/proc") : NULL;
    for (struct dirent *entry; proc && l.found < OBSTACLES_MAX && (entry = readdir(proc));) {
        if (*entry->d_name < '1' || *entry->d_name > '9') continue;
        look_at_files(&l, entry->d_name);
        look_at_mappings(&l, entry->d_name);
    }
    if (proc) closedir(proc);
    return l.n;
}
