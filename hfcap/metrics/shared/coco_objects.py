"""Words for the 80 object categories of COCO, our own compact table, and a finder for them in captions.

Rohrbach et al. (2018) published a longer list; this one was written for hfcap, so that CHAIR values computed with it
are comparable with each other but not to the last digit with theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from hfcap.metrics.shared.object_words import ObjectVocabulary, plurals

_NO_OBJECT = ""

# Category: words and phrases besides its own name, in the singular; irregular plurals are written out.
_WORDS = {
    "person": "man men woman women boy girl child children kid baby toddler infant lady gentleman gentlemen guy people "
    "adult player skier surfer snowboarder skateboarder rider cyclist bicyclist pedestrian passenger worker officer "
    "policeman policemen soldier chef cook farmer fisherman fishermen batter pitcher umpire catcher audience crowd "
    "spectator bride groom student teacher tourist swimmer golfer athlete male female teenager "
    "motorcyclist biker driver pilot cowboy biker human driver jockey",
    "bicycle": "bike cycle",
    "car": "automobile sedan taxi cab suv van minivan hatchback jeep coupe",
    "motorcycle": "motorbike moped scooter motor_bike motor_cycle motor_scooter",
    "airplane": "plane air_plane aeroplane jet airliner aircraft jetliner biplane seaplane",
    "bus": "double_decker minibus trolley_bus buses",
    "train": "locomotive subway_train freight_train tram railcar caboose",
    "truck": "pickup lorry firetruck fire_truck dump_truck fire_engine semi tractor_trailer",
    "boat": "ship canoe kayak sailboat rowboat raft ferry yacht speedboat tugboat gondola dinghy motorboat",
    "traffic light": "stoplight traffic_signal street_light stop_light",
    "fire hydrant": "hydrant",
    "stop sign": "",
    "parking meter": "",
    "bench": "park_bench benches",
    "bird": "pigeon seagull duck goose geese parrot owl eagle hen rooster swan ostrich penguin crow hawk "
    "peacock flamingo pelican gull parakeet ducklings duckling sparrow heron finch",
    "cat": "kitten kitty",
    "dog": "puppy puppies pup poodle terrier bulldog dachshund corgi labrador retriever hound",
    "horse": "pony ponies foal colt mare stallion",
    "sheep": "lamb ram ewe",
    "cow": "cattle bull calf calves ox oxen heifer steer",
    "elephant": "",
    "bear": "panda grizzly",
    "zebra": "",
    "giraffe": "",
    "backpack": "rucksack knapsack back_pack",
    "umbrella": "parasol",
    "handbag": "purse hand_bag",
    "tie": "necktie bow_tie",
    "suitcase": "luggage suit_case briefcase",
    "frisbee": "",
    "skis": "ski",
    "snowboard": "snow_board",
    "sports ball": "ball baseball soccer_ball tennis_ball basketball football volleyball",
    "kite": "",
    "baseball bat": "bat",
    "baseball glove": "mitt glove catcher_mitt baseball_mitt",
    "skateboard": "skate_board",
    "surfboard": "surf_board",
    "tennis racket": "racket racquet tennis_racquet",
    "bottle": "wine_bottle beer_bottle",
    "wine glass": "wineglass",
    "cup": "mug teacup coffee_cup",
    "fork": "",
    "knife": "knives",
    "spoon": "",
    "bowl": "",
    "banana": "",
    "apple": "",
    "sandwich": "burger hamburger cheeseburger sub sandwiches",
    "orange": "",
    "broccoli": "",
    "carrot": "",
    "hot dog": "hotdog chili_dog",
    "pizza": "",
    "donut": "doughnut",
    "cake": "cupcake cheesecake",
    "chair": "armchair stool recliner",
    "couch": "sofa couches loveseat",
    "potted plant": "houseplant potted_flower plant",
    "bed": "bunk_bed",
    "dining table": "table desk counter_table kitchen_table",
    "toilet": "urinal toilet_seat",
    "tv": "television tv_set television_set",
    "laptop": "laptop_computer notebook_computer computer",
    "mouse": "computer_mouse mice",
    "remote": "remote_control controller",
    "keyboard": "",
    "cell phone": "cellphone phone mobile_phone smartphone telephone iphone",
    "microwave": "microwave_oven",
    "oven": "stove stove_top_oven",
    "toaster": "",
    "sink": "basin",
    "refrigerator": "fridge freezer",
    "book": "textbook",
    "clock": "clock_tower clocktower",
    "vase": "",
    "scissors": "scissor",
    "teddy bear": "teddy stuffed_bear stuffed_animal",
    "hair drier": "hair_dryer blow_dryer hairdryer",
    "toothbrush": "tooth_brush toothbrushes",
}

# Phrases that contain the word of a category and mean something else.
_OTHER_MEANINGS = (
    "train_track train_station train_tracks bus_stop bus_station car_seat boat_house bear_claw bird_house bird_cage "
    "dog_house horse_carriage cat_food dog_food toilet_paper toilet_brush orange_juice apple_juice "
    "orange_shirt orange_jacket orange_vest orange_hat orange_flower orange_cone tennis_court "
    "baseball_game baseball_field baseball_cap baseball_diamond baseball_uniform football_field "
    "basketball_court kite_surfing bed_spread table_cloth table_top clock_face book_shelf book_case bottle_cap "
    "pizza_oven cell_tower glass_window glass_door glass_wall glass_case glass_building glass_table stained_glass "
    "ski_lift ski_slope ski_resort ski_pole ski_trail ski_run ski_jump home_plate train_car train_cars train_engine "
    "train_yard train_platform car_door car_window street_car parking_garage ram_horn ball_game ball_cap "
    "phone_booth baby_animal adult_animal baby_cub adult_cub "
)

_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")
_ATTRIBUTES_OF_ANIMALS = ("baby", "adult", "male", "female", "infant")

CATEGORIES = tuple(_WORDS)
"""Names of the 80 categories, as in COCO's instance annotations."""

_VEHICLES = ("car", "airplane", "bus", "train", "truck", "boat")
_BALLS = ("baseball", "basketball", "football", "volleyball")

_LONGEST_PHRASE = 3


@cache
def _phrases() -> dict[tuple[str, ...], str]:
    """Words of each phrase -> category, plurals included; _NO_OBJECT for other meanings."""
    singular: dict[tuple[str, ...], str] = {}
    for category, words in _WORDS.items():
        for phrase in (category.replace(" ", "_"), *words.split()):
            singular.setdefault(tuple(phrase.split("_")), category)
    # A 'passenger train' is a train, and nobody is seen in it.
    one_word = {parts[0]: category for parts, category in singular.items() if len(parts) == 1}
    singular |= {("passenger", word): category for word, category in one_word.items() if category in _VEHICLES}
    singular |= {(ball, "player"): "person" for ball in _BALLS}  # and no ball
    singular |= {tuple(phrase.split("_")): _NO_OBJECT for phrase in _OTHER_MEANINGS.split()}
    found = dict(singular)
    for parts, category in singular.items():
        for last in plurals(parts[-1]):
            found.setdefault((*parts[:-1], last), category)
    # 'a baby elephant' is an elephant, and nobody else.
    for parts, category in list(found.items()):
        if category in _ANIMALS and len(parts) < _LONGEST_PHRASE:
            found |= {(attribute, *parts): category for attribute in _ATTRIBUTES_OF_ANIMALS}
    return found


@cache
def coco_vocabulary() -> ObjectVocabulary:
    """Return the 80 categories and the phrases of hfcap's table."""
    meanings = {words: (category,) if category != _NO_OBJECT else () for words, category in _phrases().items()}
    return ObjectVocabulary("hfcap's table of COCO's 80 categories", CATEGORIES, meanings)


def mentioned_objects(words: Sequence[str]) -> list[str]:
    """Return the category of each object that a tokenised caption mentions, in order; the longest phrase wins."""
    return [category for (category,) in coco_vocabulary().mentions(words)]
